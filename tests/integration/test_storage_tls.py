"""S3 under a certificate of one's own authority: real TLS in front of the real server.

`checkpoint.ca_file` is what the chart's `s3.ca` sets, together with AWS_CA_BUNDLE.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from giblet.errors import StorageDeniedError
from giblet.storage.embedded import EmbeddedServer
from giblet.storage.s3 import S3Storage
from tests.support import cluster as _ci  # noqa: F401  # puts ci/ on the path
from tests.support.s3 import HASTY, tls_endpoint

# isort: split
from localcluster.pki import Authority

pytestmark = pytest.mark.s3


@dataclass(frozen=True)
class Tls:
    """A server behind TLS, the authority that signed its certificate for 127.0.0.1, and another one."""

    server: EmbeddedServer
    port: int
    authority: Path
    stranger: Path

    def open(self, host: str = "127.0.0.1", scheme: str = "https", **settings: object) -> S3Storage:
        config = self.server.config("tls").model_copy(
            update={
                "endpoint_url": f"{scheme}://{host}:{self.port}",
                **HASTY,
                "read_timeout_seconds": 60.0,
                "connect_timeout_seconds": 30.0,
                **settings,
            }
        )
        return S3Storage.open("s3://tls/here", config, credentials=self.server.credentials())


@pytest.fixture(scope="module")
def tls(s3_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    ours, other = (Authority(tmp_path_factory.mktemp("pki")) for _ in range(2))
    for authority in (ours, other):
        authority.create()
    identity = ours.issue("s3", "s3", hosts=("IP:127.0.0.1",))
    s3_server.storage("tls")
    with tls_endpoint(s3_server.endpoint_url, identity.certificate, identity.key) as port:
        yield Tls(s3_server, port, ours.certificate, other.certificate)


@pytest.fixture(autouse=True)
def _no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def test_an_authority_in_the_configuration_is_trusted(tls: Tls) -> None:
    store = tls.open(ca_file=str(tls.authority))
    store.put("x", b"one", if_absent=True)
    assert store.get("x") == b"one"
    store.put("big", bytes(9 << 20))
    assert store.head("big").size_bytes == 9 << 20  # type: ignore[union-attr]


def test_an_authority_in_the_environment_is_trusted(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.authority))
    store = tls.open()
    store.put("y", b"two")
    assert store.get("y") == b"two"


@pytest.mark.parametrize(("how", "reason"), [("none", "issuer"), ("another", "issuer"), ("another host", "hostname")])
def test_a_certificate_that_is_not_trusted_is_denied_for_good(tls: Tls, how: str, reason: str) -> None:
    """78, not 129: no retry will ever mend it, and a pod that tried would be replaced for ever."""
    settings = {"none": {}, "another": {"ca_file": str(tls.stranger)}, "another host": {"ca_file": str(tls.authority)}}
    store = tls.open("localhost" if how == "another host" else "127.0.0.1", **settings[how])
    for call in (lambda: store.get("x"), lambda: store.put("x", b"1"), lambda: list(store.list())):
        with pytest.raises(StorageDeniedError, match=f"certificate is not trusted: .*{reason}") as caught:
            call()
        assert caught.value.exit_code == 78
        for word in ("checkpoint.ca_file", "AWS_CA_BUNDLE", "s3.ca"):
            assert word in str(caught.value.remedy)


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_bundle_that_is_none_is_denied_by_its_path(tls: Tls, tmp_path: Path, content: str | None) -> None:
    bundle = tmp_path / "ca.crt"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(StorageDeniedError, match=str(bundle)):
        tls.open(ca_file=str(bundle)).get("x")


def test_https_where_the_server_speaks_http_is_denied(tls: Tls) -> None:
    port = int(tls.server.endpoint_url.rpartition(":")[2])
    plain = Tls(tls.server, port, tls.authority, tls.stranger)
    with pytest.raises(StorageDeniedError, match="http://"):
        plain.open().get("x")


def test_a_worker_that_does_not_trust_its_bucket_ends_for_good_and_says_why(tls: Tls, tmp_path: Path) -> None:
    """`giblet launch`, as in a pod: one start, the reason in its termination message, no retries."""
    config = tmp_path / "giblet.yaml"
    checkpoint = {"url": "s3://tls/run", "endpoint_url": f"https://127.0.0.1:{tls.port}", **HASTY}
    data = {"prepared": f"s3://tls/datasets/{'0' * 64}", "cache_dir": str(tmp_path / "cache")}
    config.write_text(
        yaml.safe_dump({"config": {"checkpoint": checkpoint, "data": data, "training": {"device": "cpu"}}})
    )
    keys = {"AWS_ACCESS_KEY_ID": tls.server.access_key, "AWS_SECRET_ACCESS_KEY": tls.server.secret_key}
    command = [sys.executable, "-m", "giblet", "launch", "--config", str(config)]
    done = subprocess.run(command, env=os.environ | keys, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 78, done.stderr
    assert "certificate is not trusted" in done.stderr
    assert "checkpoint.ca_file" in done.stderr
