"""What end-to-end tests share: the demo in small, and a cluster with the image and the demo's dataset in its S3."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from giblet.data.prepared import PreparedDataset
from giblet.data.transfer import publish
from tests.support.cluster import REPOSITORY, TestCluster
from tests.support.lab import BUCKET, Lab, storage_of

# isort: split
from localcluster.local import LocalCluster, cannot_run_here
from localcluster.settings import Paths

SAID = "said.txt"


def skip_unless_a_cluster_can_be_built(state: Path) -> None:
    """Skip with the reason; in CI the programs are built before, so that only a machine that cannot at all skips."""
    if (reason := cannot_run_here()) is not None:
        pytest.skip(f"a local cluster {reason}")
    local = LocalCluster(Paths(state.resolve(), Paths.from_environment().cache))
    if missing := [step.name for step in local.tools.missing()]:
        pytest.skip(f"`ci/cluster build` first: {', '.join(missing)}")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of `ci/demo.py --quick`, and what it said. GIBLET_E2E_DEMO names one that ran already.

    Several processes that share the tests share the demo: one runs it, and the others wait.
    """
    if there := os.environ.get("GIBLET_E2E_DEMO"):
        return Path(there), (Path(there) / SAID).read_text()
    ours = tmp_path_factory.getbasetemp()
    folder = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "demo"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / SAID).exists():
            command = [sys.executable, "ci/demo.py", "--quick", "--folder", str(folder)]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-6000:]
            (folder / SAID).write_text(done.stderr)
    return folder, (folder / SAID).read_text()


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestCluster, bool]]:
    """A cluster of two nodes of eight pretended GPUs each, and whether these tests made it.

    GIBLET_E2E_CLUSTER names the state folder of one that runs already, and is left running.
    """
    if running := os.environ.get("GIBLET_E2E_CLUSTER"):
        yield TestCluster(Path(running)), False
        return
    cluster = TestCluster(tmp_path_factory.mktemp("lab") / "state")
    skip_unless_a_cluster_can_be_built(cluster.state)
    try:
        cluster.run("up", "--kind", "local", "--nodes", "2", "--gpus", "8")
        yield cluster, True
    finally:
        cluster.run("down", check=False)


@pytest.fixture(scope="session")
def lab(two_nodes: tuple[TestCluster, bool], demo: tuple[Path, str]) -> Iterator[Lab]:
    """That cluster with the image on its nodes and the demo's prepared dataset in its S3."""
    cluster, own = two_nodes
    image = json.loads(cluster.run("image", "--json").stdout)["image"]
    with cluster.port_forward("giblet-s3", "service/s3", 8333) as address:
        storage = storage_of(address)
        dataset = PreparedDataset.open(next((demo[0] / "datasets").glob("*/manifest.json")).parent)
        publish(dataset, storage)
        yield Lab(cluster, image, f"{BUCKET}/datasets/{dataset.manifest.content_hash}", storage, own)
