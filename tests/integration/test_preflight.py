"""`giblet preflight` against a real S3 server: what works, and each refusal with its exit code and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from giblet.cli import main
from giblet.storage.embedded import EmbeddedServer
from tests.support.s3 import HASTY, dead_endpoint

pytestmark = pytest.mark.s3


@pytest.fixture
def checked(s3_server: EmbeddedServer, tmp_path: Path, monkeypatch, capsys):
    """Run the verb with changes to the configuration; returns its exit code and its checks by name."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("GIBLET_NAMESPACE", raising=False)

    def run(**checkpoint: object) -> tuple[int, dict[str, dict[str, str]]]:
        settings = {"url": "s3://giblet/preflight-test", "endpoint_url": s3_server.endpoint_url, **HASTY, **checkpoint}
        tree = {"checkpoint": settings, "data": {"cache_dir": str(tmp_path / "cache")}}
        (tmp_path / "giblet.yaml").write_text(yaml.safe_dump({"config": tree}))
        code = main(["preflight", "--config", str(tmp_path / "giblet.yaml"), "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["exit_code"] == code
        return code, {check["name"]: check for check in told["checks"]}

    return run


def test_a_server_that_does_all_that_is_needed(checked, s3_server):
    code, checks = checked(read_timeout_seconds=20.0)
    assert code == 0, checks
    assert {check["status"] for name, check in checks.items() if name.startswith("bucket")} == {"ok"}
    assert checks["endpoint"]["detail"].startswith("127.0.0.1 is")
    assert list(s3_server.storage("giblet", "preflight-test").list()) == []


def test_a_bucket_that_is_not_there(checked):
    code, checks = checked(url="s3://no-such-bucket", read_timeout_seconds=20.0)
    assert code == 78
    assert "create the bucket" in checks["bucket read"]["remedy"]


def test_a_secret_that_is_wrong(checked, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    code, checks = checked(read_timeout_seconds=20.0)
    assert code == 78
    assert "AWS_SECRET_ACCESS_KEY" in checks["bucket read"]["remedy"]
    assert "not-the-secret" not in json.dumps(checks)


def test_an_endpoint_where_nobody_listens(checked):
    with dead_endpoint() as address:
        code, checks = checked(endpoint_url=address)
    assert code == 129
    assert checks["bucket write"]["status"] == "skipped"
