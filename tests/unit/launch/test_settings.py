import pytest

from giblet.errors import ConfigError
from giblet.launch.settings import grace_warnings, read_settings

OPERATOR = {
    "PET_RDZV_ENDPOINT": "giblet-rendezvous:29400", "PET_RDZV_BACKEND": "c10d", "PET_NNODES": "1:3",
    "PET_NPROC_PER_NODE": "8", "PET_MAX_RESTARTS": "4", "PET_RDZV_CONF": "is_host=0, last_call_timeout=7",
    "GIBLET_JOB": "giblet-prod", "GIBLET_POD": "giblet-prod-worker-1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
}  # fmt: skip


def settings(flags=None, **environment):
    return read_settings(flags or {}, environment, run="r")


def test_the_operators_variables_are_read():
    found = settings(**OPERATOR)
    assert (found.endpoint, found.min_nodes, found.max_nodes) == ("giblet-rendezvous:29400", 1, 3)
    assert (found.processes, found.max_restarts, found.shutdown_seconds) == (8, 4, 600)
    assert (found.job, found.pod) == ("giblet-prod", "giblet-prod-worker-1")
    assert found.rendezvous == {"is_host": "0", "last_call_timeout": "7"}


def test_flags_win_and_an_id_wins_over_the_jobs_name():
    found = read_settings({"nnodes": "2", "rdzv_id": "mine"}, OPERATOR, run="r")
    assert (found.min_nodes, found.max_nodes, found.job) == (2, 2, "mine")


def test_without_anything_a_node_is_alone():
    found = settings()
    assert found.endpoint is None
    assert (found.min_nodes, found.max_nodes, found.processes, found.job) == (1, 1, None, "r")
    assert found.termination_log is None


def test_auto_is_a_process_a_gpu():
    environment = {**OPERATOR, "PET_NPROC_PER_NODE": "auto"}
    assert read_settings({}, environment, run="r", gpus=4).processes == 4
    assert read_settings({}, environment, run="r", gpus=0).processes == 1


def test_every_fault_is_told_at_once():
    with pytest.raises(ConfigError) as raised:
        settings(PET_NNODES="3:2", PET_MAX_RESTARTS="many", PET_RDZV_BACKEND="etcd", PET_RDZV_CONF="is_host")
    told = str(raised.value)
    for part in ("MIN <= MAX", "PET_MAX_RESTARTS", "etcd", "key=value", "PET_RDZV_ENDPOINT"):
        assert part in told


def test_a_grace_period_that_is_too_short_is_told():
    enough = settings(**OPERATOR, GIBLET_GRACE_SECONDS="660")
    short = settings(**OPERATOR, GIBLET_GRACE_SECONDS="610")
    assert grace_warnings(enough, margin_seconds=20) == []
    assert "600" in grace_warnings(short, margin_seconds=20)[0]
    assert grace_warnings(settings(**OPERATOR), margin_seconds=20) == []
