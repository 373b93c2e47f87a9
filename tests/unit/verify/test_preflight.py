"""What `helm test` asks, with a store in memory: each fault is found, named, and has its remedy and exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from giblet.config import load_config_data
from giblet.config.schema import GibletConfig
from giblet.errors import StorageDeniedError, StorageUnavailableError
from giblet.storage import MemoryStorage
from giblet.verify.preflight import Finding, Permission, exit_code_of, preflight


@pytest.fixture
def config(tmp_path: Path) -> GibletConfig:
    return load_config_data({"data": {"cache_dir": str(tmp_path / "cache")}, "checkpoint": {"url": str(tmp_path)}})


def found(config: GibletConfig, storage: MemoryStorage, **options: object) -> dict[str, Finding]:
    return {finding.name: finding for finding in preflight(config, storage=storage, **options)}


def refusing(*calls: str) -> Callable[[str, str], None]:
    def hook(call: str, key: str) -> None:
        if call in calls:
            raise StorageDeniedError(f"cannot {call} {key}: AccessDenied", remedy="give these credentials leave")

    return hook


def test_all_is_well_and_nothing_is_left(config, tmp_path):
    storage = MemoryStorage()
    findings = found(config, storage, gpus=0, may=lambda permission: True, job="movie")
    assert [finding.name for finding in findings.values() if finding.status == "FAIL"] == []
    assert exit_code_of(list(findings.values())) == 0
    assert storage.objects == {}
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_bucket_that_may_be_read_and_not_written(config):
    storage = MemoryStorage()
    storage.before = refusing("put")
    findings = found(config, storage)
    assert {name: finding.status for name, finding in findings.items() if name.startswith("bucket")} == {
        "bucket read": "ok", "bucket write": "FAIL", "bucket conditional put": "skipped", "bucket delete": "skipped",
    }  # fmt: skip
    assert findings["bucket write"].remedy == "give these credentials leave"
    assert exit_code_of(list(findings.values())) == 78


def test_a_bucket_that_may_not_be_read_is_asked_nothing_else(config):
    storage = MemoryStorage()
    storage.before = refusing("list")
    findings = found(config, storage)
    assert findings["bucket read"].status == "FAIL"
    assert findings["bucket write"].status == "skipped"


def test_a_bucket_whose_objects_cannot_be_deleted(config):
    storage = MemoryStorage()
    storage.before = refusing("delete")
    assert found(config, storage)["bucket delete"].status == "FAIL"


def test_a_server_that_ignores_conditions(config):
    storage = MemoryStorage(conditional_puts=False)
    findings = found(config, storage)
    assert findings["bucket conditional put"].status == "FAIL"
    assert "If-None-Match" in findings["bucket conditional put"].detail
    assert storage.objects == {}, "the probe is removed all the same"


def test_storage_that_is_away_is_worth_a_retry(config):
    storage = MemoryStorage()

    def away(call: str, key: str) -> None:
        raise StorageUnavailableError("nothing answers")

    storage.before = away
    assert exit_code_of(list(found(config, storage).values())) == 129


def test_a_name_without_an_address():
    config = load_config_data({"checkpoint": {"url": "s3://bucket", "endpoint_url": "http://nowhere.invalid:8333"}})
    endpoint = found(config, MemoryStorage())["endpoint"]
    assert endpoint.status == "FAIL"
    assert "nowhere.invalid" in endpoint.detail
    assert endpoint.exit_code == 129


def test_permissions_are_asked_for_one_by_one(config):
    asked = []

    def may(permission: Permission) -> bool:
        asked.append(permission)
        return permission.verb != "patch"

    findings = found(config, MemoryStorage(), may=may, job="movie")
    assert [(p.verb, p.resource, p.name) for p in asked] == [
        ("get", "pytorchjobs", "movie"), ("patch", "pytorchjobs", "movie"), ("create", "events", ""),
    ]  # fmt: skip
    assert findings["may patch pytorchjobs"].status == "FAIL"
    assert "may not patch pytorchjobs movie" in findings["may patch pytorchjobs"].detail
    assert exit_code_of(list(findings.values())) == 2


def test_a_folder_that_cannot_be_written(config, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    findings = found(config, MemoryStorage())
    assert findings["cache"].status == "FAIL"
    assert findings["cache"].exit_code == 2


def test_a_disk_without_room(config, monkeypatch):
    import shutil

    from giblet.verify import preflight as module

    usage = shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    cache = found(config, MemoryStorage())["cache"]
    assert (cache.status, cache.exit_code) == ("FAIL", 74)


def test_gpus_that_are_not_there(config):
    gpus = found(config, MemoryStorage(), gpus=999)["gpus"]
    assert (gpus.status, gpus.exit_code) == ("FAIL", 69)
    assert "999 were asked for" in gpus.detail
