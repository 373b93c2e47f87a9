"""What checkpoints are compared with, in a process with packages of its own: s3fs wants a botocore of its own.

    python -m benches.peers     reads one JSON request a line, answers with one JSON line

Requests: {"do": "begin", bucket, tensors, megabytes}, then {"do": "save" | "load", "peer": name, "place": name}.
`begin` answers with the peers that can be imported and their versions, the others with {wall, cpu} seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "ci" / "bench.lock"
DCP: Any = importlib.import_module("torch.distributed.checkpoint")
Tensors = dict[str, torch.Tensor]


class Peer(Protocol):
    """Another way to keep the same tensors in the same bucket; both calls are synchronous."""

    package: str

    def save(self, tensors: Tensors, place: str) -> None:
        """Returns when they are stored."""

    def load(self, tensors: Tensors, place: str) -> None:
        """Fills them in place."""


class TorchSave:
    """`torch.save` to a file, then boto3's own transfer of it; and back."""

    package = "boto3"

    def __init__(self, bucket: str) -> None:
        import boto3

        self._client, self._bucket = boto3.client("s3"), bucket

    def save(self, tensors: Tensors, place: str) -> None:
        """See `Peer`."""
        with tempfile.NamedTemporaryFile(prefix="giblet-bench-") as file:
            torch.save(tensors, file.name)
            self._client.upload_file(file.name, self._bucket, place)

    def load(self, tensors: Tensors, place: str) -> None:
        """See `Peer`."""
        with tempfile.NamedTemporaryFile(prefix="giblet-bench-") as file:
            self._client.download_file(self._bucket, place, file.name)
            for name, tensor in torch.load(file.name, weights_only=True).items():
                tensors[name].copy_(tensor)


class Fsspec:
    """DCP's own writer and reader over s3fs."""

    package = "s3fs"

    def __init__(self, bucket: str) -> None:
        from torch.distributed.checkpoint import _fsspec_filesystem

        importlib.import_module("s3fs")
        self._dcp, self._bucket = _fsspec_filesystem, bucket
        self._options: dict[str, Any] = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}

    def save(self, tensors: Tensors, place: str) -> None:
        """See `Peer`."""
        writer = self._dcp.FsspecWriter(f"s3://{self._bucket}/{place}", sync_files=False, **self._options)
        DCP.save(tensors, storage_writer=writer)

    def load(self, tensors: Tensors, place: str) -> None:
        """See `Peer`."""
        reader = self._dcp.FsspecReader(f"s3://{self._bucket}/{place}", **self._options)
        DCP.load(tensors, storage_reader=reader)


class S3Connector:
    """AWS's own writer and reader for DCP."""

    package = "s3torchconnector"

    def __init__(self, bucket: str) -> None:
        self._dcp = importlib.import_module("s3torchconnector.dcp")
        config = importlib.import_module("s3torchconnector").S3ClientConfig(force_path_style=True)
        self._settings = {"region": os.environ["AWS_REGION"], "s3client_config": config}
        self._bucket = bucket

    def save(self, tensors: Tensors, place: str) -> None:
        """See `Peer`."""
        writer = self._dcp.S3StorageWriter(path=f"s3://{self._bucket}/{place}", **self._settings)
        DCP.save(tensors, storage_writer=writer)

    def load(self, tensors: Tensors, place: str) -> None:
        """See `Peer`."""
        reader = self._dcp.S3StorageReader(path=f"s3://{self._bucket}/{place}", **self._settings)
        DCP.load(tensors, storage_reader=reader)


PEERS: dict[str, Callable[[str], Peer]] = {
    "torch.save + boto3": TorchSave, "FsspecWriter (s3fs)": Fsspec, "S3StorageWriter": S3Connector,
}  # fmt: skip


def make_tensors(count: int, megabytes: int) -> Tensors:
    """The same bytes in every process."""
    elements = megabytes * 250_000 // count
    made = torch.Generator().manual_seed(1)
    return {f"layer{n:02d}.weight": torch.randn(elements, generator=made) for n in range(count)}


class Peers:
    """The process with the peers, seen from outside. `names` maps each that runs to its version."""

    def __init__(self, environment: dict[str, str], bucket: str, tensors: int, megabytes: int) -> None:
        paths = [str(ROOT / "ci"), *([packages] if (packages := install()) else [])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benches.peers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(reversed(paths))},
        )  # fmt: skip
        self.names: dict[str, str] = self._ask(do="begin", bucket=bucket, tensors=tensors, megabytes=megabytes)

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def time(self, do: str, peer: str, place: str) -> tuple[float, float]:
        """Wall and processor seconds of a save or load."""
        answer = self._ask(do=do, peer=peer, place=place)
        return answer["wall"], answer["cpu"]

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the process with the peers ended at {request}")
        return json.loads(line)


def install() -> str | None:
    """The folder with the packages of `ci/bench.lock`, installed once; None where they cannot be had."""
    name = f"bench-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "giblet" / name
    if folder.exists():
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", sys.executable]
    done = subprocess.run([*uv, "--target", str(part), "--no-deps", "--require-hashes", "-r", str(LOCK)], check=False)
    if done.returncode:
        shutil.rmtree(part)
        print("s3fs and s3torchconnector could not be installed: compared without them", file=sys.stderr)
        return None
    part.rename(folder)
    return str(folder)


def main() -> None:
    """Answer requests until there are none."""
    warnings.filterwarnings("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    running: dict[str, Peer] = {}
    tensors: Tensors = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "begin":
            tensors = make_tensors(request["tensors"], request["megabytes"])
            running = begin(request["bucket"])
            answer: Any = {name: importlib.metadata.version(peer.package) for name, peer in running.items()}
        else:
            answer = timed(getattr(running[request["peer"]], request["do"]), (tensors, request["place"]))
        print(json.dumps(answer), file=answers, flush=True)


def begin(bucket: str) -> dict[str, Peer]:
    """Those that can be imported here."""
    running: dict[str, Peer] = {}
    for name, make in PEERS.items():
        try:
            running[name] = make(bucket)
        except ImportError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    return running


def timed(work: Callable[..., object], arguments: Sequence[object]) -> dict[str, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    main()
