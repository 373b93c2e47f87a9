"""Every rendering that the chart promises, in front of the judges that a cluster would put it to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from giblet.config import load_config
from tests.support.chart import (
    MINIMAL,
    MONITORING_APIS,
    REPOSITORY,
    Object,
    Rendering,
    admission_faults,
    merged,
    name,
    render,
    schema_faults,
)
from tests.support.chart_values import SCENARIOS, filled

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
OVERLAYS = sorted((REPOSITORY / "configs/cluster").glob("*.yaml"))


def file_id(path: Path) -> str:
    return path.relative_to(REPOSITORY / "configs").as_posix()


def judge(chart: Rendering) -> None:
    """All that can be said of a rendering without a cluster."""
    assert schema_faults(chart) == {}
    jobs = {name(job): job for job in chart.all("PyTorchJob")}
    assert len(jobs) == 1
    assert admission_faults(jobs | chart.pods()) == {}
    assert unresolved(chart) == {}


def unresolved(chart: Rendering) -> dict[str, list[str]]:
    """References of pods to what is not there: volumes, ConfigMaps, accounts, secrets of the chart's own."""
    found: dict[str, list[str]] = {}
    release = chart.one("PyTorchJob")["metadata"]["name"]
    for where, pod in chart.pods().items():
        spec, faults = pod["spec"], []
        volumes = [volume["name"] for volume in spec.get("volumes", [])]
        for item in [*spec.get("initContainers", []), *spec["containers"]]:
            mounts = [mount["name"] for mount in item.get("volumeMounts", [])]
            paths = [(mount["mountPath"], mount.get("subPath")) for mount in item.get("volumeMounts", [])]
            faults += [f"{item['name']} mounts {mount}" for mount in mounts if mount not in volumes]
            faults += [f"{item['name']} mounts twice: {path}" for path in paths if paths.count(path) > 1]
            keys = [entry["name"] for entry in item.get("env", [])]
            faults += [f"{item['name']} sets twice: {key}" for key in keys if keys.count(key) > 1]
        faults += [f"volume twice: {volume}" for volume in volumes if volumes.count(volume) > 1]
        wanted = [("ConfigMap", volume["configMap"]["name"]) for volume in spec["volumes"] if "configMap" in volume]
        wanted.append(("ServiceAccount", spec["serviceAccountName"]))
        for item in spec["containers"]:
            secrets = [entry.get("valueFrom", {}).get("secretKeyRef", {}).get("name", "") for entry in item["env"]]
            wanted += [("Secret", secret) for secret in secrets]
        for kind, needed in wanted:
            if needed.startswith(release) and f"{kind}/{needed}" not in chart.names:
                faults.append(f"no {kind}/{needed}")
        if faults:
            found[where] = faults
    return found


@pytest.mark.parametrize("file", CONFIGS, ids=file_id)
def test_every_configuration_renders_what_a_cluster_accepts(file: Path) -> None:
    judge(render(filled(file), files=(file,), apis=MONITORING_APIS))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=file_id)
def test_every_overlay_renders_on_top_of_prod(overlay: Path) -> None:
    prod = REPOSITORY / "configs/prod.yaml"
    plain = render(filled(prod), files=(prod,))
    chart = render(filled(prod, overlay), files=(prod, overlay), apis=MONITORING_APIS)
    judge(chart)
    assert chart.text != plain.text, "an overlay that changes nothing"


@pytest.mark.parametrize("file", CONFIGS, ids=file_id)
def test_the_pods_read_the_configuration_that_the_file_says(file: Path, tmp_path: Path) -> None:
    values = filled(file)
    chart = render(values, files=(file,))
    mounted = tmp_path / "giblet.yaml"
    mounted.write_text(chart.one("ConfigMap", "-config")["data"]["giblet.yaml"])
    expected = tmp_path / "expected.yaml"
    written = merged(yaml.safe_load(file.read_text()), values)
    written["config"] = merged(
        {"run": {"name": "giblet-prod"}}, written["config"], {"data": {"cache_dir": "/cache/datasets"}}
    )
    expected.write_text(yaml.safe_dump(written))
    assert load_config(mounted) == load_config(expected)


@pytest.mark.parametrize("values", SCENARIOS.values(), ids=SCENARIOS)
def test_what_values_can_ask_for_renders_what_a_cluster_accepts(values: Object) -> None:
    judge(render(values, apis=MONITORING_APIS))


@pytest.mark.parametrize("values", [{}, *SCENARIOS.values()], ids=["the smallest values", *SCENARIOS])
def test_what_renders_is_also_what_config_check_accepts(values: Object, tmp_path: Path) -> None:
    """Two doors, one set of rules: the chart's templates and giblet/config/values.py."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(merged(MINIMAL, values)))
    load_config(file)
