"""Drills on the local cluster, with the real operator: one release of two workers meets one fault after another."""

from __future__ import annotations

import os
import signal
import time

from localcluster.node import Node
from localcluster.settings import CONTROL_PLANE_IP

from drills.drill import drill
from drills.lab import ClusterScene
from drills.promises import require
from giblet.checkpoint.survey import survey

RANKS = """
import os, pathlib
parents = {}
for folder in pathlib.Path("/proc").iterdir():
    if folder.name.isdigit():
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
def depth(pid):
    return 1 + depth(parents[pid]) if parents.get(pid) else 0
ranks = [pid for pid in parents if pid != os.getpid() and depth(pid) >= 2 and pid not in parents.values()]
"""
"""Leaves `ranks`: the processes that the zygote, a child of the launcher, has forked."""
MEMORY = """
import time
def gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
for pid in ranks:
    pathlib.Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
children = []
while not any(map(gone, ranks)):
    ready, filled = os.pipe()
    child = os.fork()
    if not child:
        held = []
        for _ in range(128):
            held.append(bytearray(os.urandom(1 << 20)))
            time.sleep(0.005)
        os.write(filled, b"x")
        time.sleep(600)
    children.append(child)
    os.close(filled)
    os.read(ready, 1)
    os.close(ready)
print(time.time())
for child in children:
    os.kill(child, 9)
"""
"""Eats what the pod may have, in pieces smaller than a rank, until the kernel has killed a rank; prints when."""


@drill("cluster-rank-killed", "a rank SIGKILLed in its pod", where="cluster", goal_seconds=15.0, starts=2)
def rank_killed(scene: ClusterScene) -> str:
    """Cured in place: no new pod."""
    scene.both_train()
    uids = [scene.uid(0), scene.uid(1)]
    scene.strike(lambda: scene.inside(1, RANKS + "os.kill(ranks[0], 9)"))
    scene.until_next_step()
    scene.until_both_again()
    require([scene.uid(0), scene.uid(1)] == uids, "a pod was replaced")
    return scene.ends()


@drill("cluster-pod-deleted", "a pod deleted", where="cluster", loses="nothing", goal_seconds=30.0, starts=3)
def pod_deleted(scene: ClusterScene) -> str:
    """It saves; the other goes on without it, and saves again when the new one joins."""
    return _deleted(scene, 1)


@drill("cluster-worker-0-deleted", "worker-0 deleted", where="cluster", loses="nothing", goal_seconds=30.0, starts=3)
def worker_0_deleted(scene: ClusterScene) -> str:
    """Nothing special: the workers meet in a pod of its own."""
    return _deleted(scene, 0)


def _deleted(scene: ClusterScene, number: int) -> str:
    scene.both_train()
    uid = scene.uid(number)
    scene.strike(lambda: scene.kubectl("delete", "pod", scene.pod(number), "--wait=false"))
    scene.until_next_step()
    scene.notes.append(f"both again after {scene.until_both_again():.0f} s")
    require(scene.uid(number) != uid, "the pod was not replaced")
    return scene.ends()


@drill("cluster-pod-force-deleted", "a pod deleted with no grace", where="cluster", goal_seconds=30.0, starts=3)
def pod_force_deleted(scene: ClusterScene) -> str:
    """SIGKILL to everything in it."""
    scene.both_train()
    scene.strike(lambda: scene.kubectl("delete", "pod", scene.pod(1), "--grace-period=0", "--force", "--wait=false"))
    scene.until_next_step()
    scene.notes.append(f"both again after {scene.until_both_again():.0f} s")
    return scene.ends()


@drill("cluster-all-deleted", "all worker pods deleted at once", where="cluster", loses="nothing", starts=3)
def all_deleted(scene: ClusterScene) -> str:
    """Both save together; nobody is left meanwhile."""
    scene.both_train()
    both = (scene.pod(0), scene.pod(1))
    scene.strike(lambda: scene.kubectl("delete", "pod", *both, "--wait=false"))
    scene.until_next_step()
    scene.notes.append(f"both again after {scene.until_both_again():.0f} s")
    return scene.ends()


@drill(
    "cluster-sigterm-in-save", "SIGTERM to a pod in the middle of a save", where="cluster", loses="nothing", starts=3
)
def sigterm_in_save(scene: ClusterScene) -> str:
    """When the first object of an attempt is there and its manifest is not yet."""
    scene.both_train()
    scene.until(lambda: any(not e.committed for e in survey(scene.storage, scene.run)[-1:]), "a save under way")
    scene.strike(lambda: scene.inside(1, f"import os; os.kill(1, {int(signal.SIGTERM)})"))
    scene.until_next_step()
    scene.notes.append(f"both again after {scene.until_both_again():.0f} s")
    return scene.ends()


@drill("cluster-out-of-memory", "memory limit hit", where="cluster", starts=4)
def out_of_memory(scene: ClusterScene) -> str:
    """Processes in the pod eat all that the limit allows; the kernel kills a rank, the most willing of the pod."""
    scene.both_train()
    killed: list[float] = []
    scene.strike(lambda: killed.append(float(scene.inside(1, RANKS + MEMORY))))
    scene.struck = killed[0]
    scene.until_next_step()
    scene.until_both_again()
    return f"kernel; {scene.ends()}"


@drill("cluster-operator-restarted", "the operator restarted", where="cluster", loses="nothing", starts=3)
def operator_restarted(scene: ClusterScene) -> str:
    """Nobody misses it; a pod that is deleted meanwhile is made again when it is back."""
    scene.both_train()
    operator = ("-n", "kubeflow", "delete", "pod", "-l", "control-plane=kubeflow-training-operator", "--wait=false")
    scene.strike(lambda: scene.lab.cluster.kubectl(*operator), restarts=False)
    scene.kubectl("delete", "pod", scene.pod(1), "--wait=false")
    scene.until_next_step()
    scene.notes.append(f"worker-1, deleted meanwhile, is back after {scene.until_both_again():.0f} s")
    return scene.ends()


@drill("cluster-api-server-restarted", "the API server gone for 20 s", where="cluster", loses="nothing", starts=0)
def api_server_restarted(scene: ClusterScene) -> str:
    """Training asks nothing of it."""
    scene.both_train()
    uids = [scene.uid(0), scene.uid(1)]
    plane = scene.cluster.control_plane
    pid = plane.machine.daemon_pid("kube-apiserver")
    assert pid is not None
    scene.strike(lambda: os.kill(pid, signal.SIGKILL), restarts=False)
    time.sleep(20)
    plane.start_api()
    scene.until_next_step()
    newest = max(scene.committed())
    scene.until(lambda: max(scene.committed()) > newest, "it commits")
    require([scene.uid(0), scene.uid(1)] == uids, "a pod was replaced")
    return "nobody: training asks nothing of it"


@drill("cluster-node-drained", "a node drained", where="cluster", loses="nothing", goal_seconds=30.0, starts=3)
def node_drained(scene: ClusterScene) -> str:
    """The other goes on alone; the worker waits for a node, and joins when there is one again."""
    scene.both_train()
    kubectl = scene.lab.cluster.kubectl
    scene.strike(lambda: kubectl("drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s"))
    scene.until_next_step()
    require(scene.world_size() == 1, "it did not go on at the minimum")
    kubectl("uncordon", "node2")
    scene.notes.append(f"both again {scene.until_both_again():.0f} s after, the node having come back")
    return scene.ends()


@drill("cluster-link-cut", "a node's link cut without a word", where="cluster", goal_seconds=90.0, starts=4)
def link_cut(scene: ClusterScene) -> str:
    """The other goes on alone; when the link is back, the lost worker finds that, and joins."""
    lost = _cut(scene)
    try:
        scene.notes.append(_as_the_api_has_it(scene, lost))
    finally:
        _mend(scene)
    back = time.time()
    scene.until_both_again()
    scene.notes.append(f"both again {time.time() - back:.0f} s after the link was back, in the same pod")
    return f"heartbeat of the other launcher; {scene.ends()}"


@drill("cluster-node-removed", "a node that never comes back", where="cluster", goal_seconds=90.0, starts=4)
def node_removed(scene: ClusterScene) -> str:
    """Its link is cut and its object removed, as a cloud does; a new node (here: the old one) takes its place."""
    lost = _cut(scene)
    uid = scene.uid(lost)
    try:
        scene.notes.append(_as_the_api_has_it(scene, lost))
        scene.lab.cluster.kubectl("delete", "node", "node2")
        removed = time.time()
        scene.until(lambda: scene.uid(lost) not in ("", uid), "the operator makes another pod")
        scene.notes.append(f"another pod {time.time() - removed:.0f} s after the node's object was removed")
    finally:
        _mend(scene)
        _register_again(scene)
    scene.until_both_again()
    return f"heartbeat of the other launcher; {scene.ends()}"


def _cut(scene: ClusterScene) -> int:
    """Cut node2's link, wait until the run goes on and Kubernetes has noticed; which worker was lost."""
    scene.both_train()
    lost = 0 if scene.node_of(0) == "node2" else 1
    scene.strike(lambda: scene.node("node2", "ip", "link", "set", "eth0", "down"))
    scene.until_next_step()
    require(scene.world_size() == 1, "it did not go on at the minimum")
    scene.until(lambda: not _ready(scene), "Kubernetes notices", 120)
    scene.notes.append(f"Kubernetes says NotReady after {time.time() - scene.struck:.0f} s")
    return lost


def _mend(scene: ClusterScene) -> None:
    scene.node("node2", "ip", "link", "set", "eth0", "up")
    scene.node("node2", "ip", "route", "replace", "default", "via", CONTROL_PLANE_IP)


def _register_again(scene: ClusterScene) -> None:
    """A kubelet registers its node when it starts, and then never again."""
    local = scene.cluster
    node = Node(local.control_plane, 2)
    pid = node.machine.daemon_pid("kubelet")
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    scene.until(lambda: node.machine.daemon_pid("kubelet") is None, "the kubelet ends")
    node._start_kubelet()
    scene.until(lambda: scene.lab.get("node", "node2").get("metadata"), "the node registers")
    local.kubectl.pretend_gpus(["node2"], 8)


def _as_the_api_has_it(scene: ClusterScene, number: int) -> str:
    pod = scene.lab.get("pod", scene.pod(number))
    ready = next(row["status"] for row in pod["status"]["conditions"] if row["type"] == "Ready")
    leaving = "being deleted" if "deletionTimestamp" in pod["metadata"] else "not being deleted"
    return f"its pod meanwhile: {pod['status']['phase']}, Ready {ready}, {leaving}"


def _ready(scene: ClusterScene) -> bool:
    rows = scene.lab.get("node", "node2")["status"]["conditions"]
    return any(row["type"] == "Ready" and row["status"] == "True" for row in rows)
