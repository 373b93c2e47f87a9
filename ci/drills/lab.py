"""The ground of cluster drills: two nodes, the real operator, one elastic release of two workers, one on each node.

All that is not a worker stands on node1, so that node2 can be lost like any node with a worker on it. What happened is
read from what the run leaves in S3 and from the pods' logs: the image is the one that people run, without a witness.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localcluster.local import LocalCluster, cannot_run_here
from localcluster.machine import Machine
from localcluster.settings import Paths

from drills.drill import BrokenPromiseError, Drill, NotHereError, Row
from giblet.checkpoint import layout, list_checkpoints
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.records import read_record
from giblet.checkpoint.starts import newest_start
from giblet.data.prepared import PreparedDataset
from giblet.data.transfer import publish
from giblet.errors import GibletError
from giblet.storage import Storage
from giblet.verify import verify
from giblet.verify.ledger import read_ledger
from tests.support.cluster import TestCluster
from tests.support.lab import BUCKET, NAMESPACE, Lab, storage_of
from tests.support.prepared import make_prepared

DEADLINE_SECONDS = 420.0
SAVE_EVERY_STEPS = 10
FILES = ("configs/prod.yaml", "configs/elastic.yaml")
RELEASE = "giblet-drills"
_STEP = re.compile(r"^(\S+Z) INFO step .*?\bstep=(\d+) of", re.MULTILINE)
_BEGUN = re.compile(r"^(\S+Z) INFO (?:resumed|started) ", re.MULTILINE)


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """The local cluster, from GIBLET_E2E_CLUSTER or made for this. Raises `NotHereError` where there can be none."""
    running = os.environ.get("GIBLET_E2E_CLUSTER")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="giblet-drills-", dir=Path.home())))
        cluster = TestCluster(Path(running) if running else folder / "state")
        if not running:
            _can_be_built(cluster)
            stack.callback(cluster.run, "down", check=False)
            cluster.run("up", "--kind", "local", "--nodes", "2", "--gpus", "8")
        image = json.loads(cluster.run("image", "--json").stdout)["image"]
        _only_on_node1(cluster)
        with cluster.port_forward("giblet-s3", "service/s3", 8333) as address:
            storage = storage_of(address)
            dataset: PreparedDataset = make_prepared(folder / f"drills-{uuid.uuid4().hex[:8]}")
            publish(dataset, storage)
            yield Lab(cluster, image, f"{BUCKET}/datasets/{dataset.manifest.content_hash}", storage, not running)


def _can_be_built(cluster: TestCluster) -> None:
    if (reason := cannot_run_here()) is not None:
        raise NotHereError(f"a local cluster {reason}")
    missing = LocalCluster(Paths(cluster.state.resolve(), Paths.from_environment().cache)).tools.missing()
    if missing:
        raise NotHereError(f"`ci/cluster build` first: {', '.join(step.name for step in missing)}")


def _only_on_node1(cluster: TestCluster) -> None:
    """Move everything that stands on node2 to node1, and let nothing but what comes later onto node2."""
    cluster.kubectl("cordon", "node2")
    found = cluster.kubectl("get", "pods", "-A", "--field-selector", "spec.nodeName=node2", "-o", "json").stdout
    for pod in json.loads(found)["items"]:
        where = pod["metadata"]
        cluster.kubectl("-n", where["namespace"], "delete", "pod", where["name"], "--wait=true")
    for namespace in {"kube-system", "kubeflow", "giblet-s3", "giblet-monitoring"}:
        cluster.kubectl("-n", namespace, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=180s",
                        check=False)  # fmt: skip


@dataclass
class ClusterScene:
    """One running release, and a drill's doings with it."""

    lab: Lab
    job: str
    run: str
    folder: Path
    drill: Drill | None = None
    struck: float = 0.0
    restarts: bool = True
    next_step: float | None = None
    first_start: int = 0
    committed_before: int = 0
    notes: list[str] = field(default_factory=list)
    person: str = "nothing"

    def begin(self, drill: Drill) -> None:
        """Forget the drill before."""
        self.drill, self.struck, self.restarts, self.next_step = drill, 0.0, True, None
        self.notes, self.person = [], "nothing"

    @property
    def storage(self) -> Storage:
        """The cluster's S3."""
        found: Storage = self.lab.storage
        return found

    def kubectl(self, *words: str, check: bool = True) -> str:
        """kubectl in the namespace; what it printed."""
        return str(self.lab.cluster.kubectl("-n", NAMESPACE, *words, check=check).stdout)

    def node(self, name: str, *command: str) -> str:
        """A command in a node's network namespace."""
        return Machine(self.cluster.paths, name).run(*command)

    @property
    def cluster(self) -> LocalCluster:
        """The cluster's own machinery."""
        return LocalCluster(Paths(self.lab.cluster.state.resolve(), Paths.from_environment().cache))

    # ------------------------------------------------------------------ what one sees

    def pod(self, number: int) -> str:
        """A worker's name."""
        return f"{self.job}-worker-{number}"

    def uid(self, number: int) -> str:
        """Which of all pods of that name is there now; "" for none."""
        return str(self.lab.get("pod", self.pod(number)).get("metadata", {}).get("uid", ""))

    def node_of(self, number: int) -> str:
        """Where a worker stands."""
        return str(self.lab.get("pod", self.pod(number)).get("spec", {}).get("nodeName", ""))

    def inside(self, number: int, program: str) -> str:
        """A Python program in a worker's container."""
        return self.kubectl("exec", self.pod(number), "-c", "pytorch", "--", "python", "-c", program)

    def world_size(self) -> int:
        """Of the newest start."""
        record = read_record(self.storage, layout.start_key(self.run, newest_start(self.storage, self.run)))
        return int((record or {}).get("world_size", 0))

    def committed(self) -> list[int]:
        """Steps of the good commits."""
        return [row.step for row in list_checkpoints(self.storage, self.run)]

    def begun(self, after: float) -> list[float]:
        """When ranks said that they began, since."""
        return self._moments(_BEGUN, after)

    def steps(self, after: float) -> list[float]:
        """When steps were done, since."""
        return self._moments(_STEP, after)

    def _moments(self, pattern: re.Pattern[str], after: float) -> list[float]:
        since = datetime.fromtimestamp(after - 1, tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        found = []
        for number in (0, 1):
            text = self.lab.logs(self.pod(number), "-c", "pytorch", f"--since-time={since}", "--request-timeout=10s")
            found += [datetime.fromisoformat(match[1]).timestamp() for match in pattern.finditer(text)]
        return sorted(moment for moment in found if moment > after)

    # ------------------------------------------------------------------ waiting

    def until(self, what: Callable[[], Any], told: str, seconds: float = DEADLINE_SECONDS) -> Any:
        """Wait for something; its value. An API server that is away is waited for as well."""
        deadline, found = time.monotonic() + seconds, None
        while not found:
            self._restart_controllers()
            with contextlib.suppress(AssertionError, json.JSONDecodeError, GibletError):
                found = what()
            if not found:
                if time.monotonic() > deadline:
                    raise BrokenPromiseError(f"it never came about: {told}\n{self.lab.story(RELEASE)[-6000:]}")
                time.sleep(0.5)
        return found

    def _restart_controllers(self) -> None:
        """As a kubelet does with static pods: a scheduler that finds its cache out of date ends itself."""
        plane = self.cluster.control_plane
        if plane.machine.daemon_pid("kube-apiserver") and not plane.machine.daemon_pid("kube-scheduler"):
            self.notes.append("the scheduler had ended itself, and was started again")
            plane.start_controllers()

    def both_train(self) -> None:
        """Two workers, a few steps beyond a commit: where every drill begins."""
        self.until(lambda: self.world_size() == 2, "two workers train together")
        before = len(self.committed())
        newest = max(self.committed(), default=0)
        self.until(lambda: max(self.committed(), default=0) > newest or len(self.committed()) > before, "a commit")

    def strike(self, cause: Callable[[], Any], *, restarts: bool = True) -> None:
        """Cause the fault, now."""
        self.first_start = newest_start(self.storage, self.run)
        self.committed_before = max(self.committed(), default=0)
        self.restarts, self.struck = restarts, time.time()
        cause()

    def until_next_step(self) -> None:
        """The first step after the fault: after ranks began anew, if it takes that."""

        def found() -> float | None:
            begun = self.begun(self.struck)
            if self.restarts and not begun:
                return None
            return next(iter(self.steps(begun[0] if self.restarts else self.struck)), None)

        self.next_step = float(self.until(found, "the next step"))

    def until_both_again(self) -> float:
        """Until two workers train together again; seconds since the fault."""
        self.until(lambda: newest_start(self.storage, self.run) > self.first_start, "a new start")
        self.until(lambda: self.world_size() == 2, "two workers train together again")
        newest = max(self.committed(), default=0)
        self.until(lambda: max(self.committed(), default=0) > newest, "they commit")
        return time.time() - self.struck

    # ------------------------------------------------------------------ evidence

    def ends(self) -> str:
        """The causes of the ends since the fault, in a few words."""
        told = []
        for number in range(self.first_start, newest_start(self.storage, self.run)):
            end = read_record(self.storage, layout.end_key(self.run, number))
            told.append("no end record" if end is None else f"{end['cause']} ({end['exit_code']})")
        return "end record: " + ", ".join(told) if told else "no end"


def steps_lost(scene: ClusterScene) -> int | None:
    """Known steps that starts since the fault did and the next did not go on from; None where one left no word."""
    lost: int | None = 0
    for number in range(scene.first_start, newest_start(scene.storage, scene.run)):
        end = read_record(scene.storage, layout.end_key(scene.run, number))
        after = read_record(scene.storage, layout.start_key(scene.run, number + 1)) or {}
        resumed = int((after.get("resumed_from") or {}).get("step", 0))
        if number == scene.first_start and resumed < scene.committed_before:
            raise BrokenPromiseError(f"it went on from step {resumed}, though {scene.committed_before} was committed")
        lost = None if end is None or lost is None else lost + max(0, int(end["step"]) - resumed)
    return lost


def judge(scene: ClusterScene, row: Row) -> None:
    """Fill the row, and add what was not kept."""
    assert scene.drill is not None
    row.starts = newest_start(scene.storage, scene.run) - scene.first_start
    if row.starts > scene.drill.starts:
        row.broken.append(f"{row.starts} new starts, and {scene.drill.starts} should have been enough")
    row.seconds = None if scene.next_step is None else scene.next_step - scene.struck
    row.goal_seconds = scene.drill.goal_seconds
    row.steps_lost = steps_lost(scene)
    if scene.drill.loses == "nothing" and row.steps_lost != 0:
        row.broken.append(f"{row.steps_lost} steps were lost, and none should have been")
    ref = max(CheckpointRef(row.step, row.attempt, scene.run) for row in list_checkpoints(scene.storage, scene.run))
    ledger = read_ledger(scene.storage, scene.run, ref)
    again = [found for found in ledger.repeated if found.start >= scene.first_start and not found.ahead]
    row.repeated = sum(len(samples) for found in again for samples in found.samples.values())
    row.missed = sum(len(epoch.missed) for epoch in ledger.epochs)
    row.open_end = any(entry.open_end and entry.number >= scene.first_start for entry in ledger.starts[:-1])
    if not ledger.proven:
        row.broken.append(f"the ledger proves nothing: {'; '.join(ledger.faults)}")
    row.verdict = verify(f"{scene.storage.url}/{ref.prefix}", storage=scene.storage).verdict
    if not row.verdict.startswith("SAFE"):
        row.broken.append(f"the newest checkpoint is {row.verdict}")


@contextlib.contextmanager
def release(place: Lab) -> Iterator[ClusterScene]:
    """The release, training on both nodes; uninstalled at the end."""
    run = f"drills-{uuid.uuid4().hex[:6]}"
    cluster = place.cluster
    values = {
        "workers__max": 2, "workers__gpusPerWorker": 8, "workers__processesPerWorker": 1, "config__run__name": run,
        "resources__requests__cpu": 1, "verify__enabled": "false",
        "config__training__epochs": 1_000_000, "config__training__patience_epochs": 0,
        "config__training__validate_every_epochs": 1_000_000, "config__checkpoint__save_best": "false",
        "config__checkpoint__save_every_epochs": 0, "config__checkpoint__save_every_steps": SAVE_EVERY_STEPS,
    }  # fmt: skip
    with place.release(RELEASE, *FILES, workers__replicas=2, **values) as job:
        scene = ClusterScene(place, job, run, Path.cwd())
        scene.until(lambda: scene.node_of(0) or scene.node_of(1), "a worker on node1")
        cluster.kubectl("uncordon", "node2")
        scene.until(lambda: {scene.node_of(0), scene.node_of(1)} == {"node1", "node2"}, "a worker on each node")
        yield scene
