"""ci/cluster: a Kubernetes cluster with all that giblet needs, found or built.

    ci/cluster up [--nodes N] [--gpus N]    until operator, S3 and Prometheus are ready; again: nothing changes
    ci/cluster status [--json]              what runs; exit 0 when all of it is ready, 1 when not
    ci/cluster down                         nothing is left but caches
    ci/cluster build                        only what `up` on this machine would build first
    ci/cluster image [--json]               giblet's image of this checkout into the cluster; prints its reference

Uses the cluster in KUBECONFIG if that is set; else makes one with kind where kind and a Docker engine are; else, as
root on Linux, builds one from Go modules and Debian packages in network namespaces of its own.

State: $GIBLET_CLUSTER_DIR, else $XDG_STATE_HOME/giblet/cluster (~/.local/state/giblet/cluster).
Caches: $XDG_CACHE_HOME/giblet/cluster (~/.cache/giblet/cluster).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator
from typing import Any

from trainerimage.inputs import ACCELERATORS, Inputs

from localcluster import trainer_image
from localcluster.external import GivenCluster, KindCluster, given_kubeconfig, kind_can_run
from localcluster.local import LocalCluster
from localcluster.record import Record
from localcluster.settings import MAX_NODES, Paths
from localcluster.shell import ClusterError
from localcluster.steps import Steps

Cluster = GivenCluster | KindCluster | LocalCluster
KINDS = ("auto", "kubeconfig", "kind", "local")


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args(arguments)
    paths = Paths.from_environment()
    try:
        with contextlib.nullcontext() if options.verb == "status" else _only_one(paths):
            return _VERBS[options.verb](paths, options)
    except ClusterError as error:
        print(f"ci/cluster {options.verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ci/cluster {options.verb}: stopped; run it again to go on, or `down`", file=sys.stderr)
        return 130


def _up(paths: Paths, options: argparse.Namespace) -> int:
    cluster = choose(paths, options.kind)
    steps = Steps(paths.cache / "timings.json")
    if isinstance(cluster, GivenCluster):
        seconds = cluster.up(gpus=options.gpus, steps=steps)
    else:
        seconds = cluster.up(nodes=options.nodes, gpus=options.gpus, steps=steps)
    print(f"ready in {seconds:.1f} s", file=sys.stderr)
    print(f"export KUBECONFIG={cluster.kubectl.kubeconfig}")
    return 0


def _down(paths: Paths, options: argparse.Namespace) -> int:
    seconds = choose(paths, options.kind).down(Steps(paths.cache / "timings.json"))
    print(f"down in {seconds:.1f} s; caches stay in {paths.cache}", file=sys.stderr)
    return 0


def _status(paths: Paths, options: argparse.Namespace) -> int:
    record = Record.load(paths.record)
    cluster = choose(paths, options.kind)
    facts: dict[str, Any] = {"kind": _kind_of(cluster), "kubeconfig": str(cluster.kubectl.kubeconfig)}
    facts |= {"gpus": record.gpus, "ports": record.ports, "images": record.images} if record is not None else {}
    facts |= cluster.status()
    facts["ready"] = _is_ready(facts)
    print(json.dumps(facts, indent=2) if options.json else _table(facts))
    return 0 if facts["ready"] else 1


def _build(paths: Paths, options: argparse.Namespace) -> int:
    cluster = choose(paths, options.kind)
    if isinstance(cluster, LocalCluster):
        seconds = cluster.build(Steps(paths.cache / "timings.json"))
        print(f"built in {seconds:.1f} s; caches lie in {paths.cache}", file=sys.stderr)
    else:
        print(f"nothing to build for a cluster of kind {_kind_of(cluster)}", file=sys.stderr)
    return 0


def _image(paths: Paths, options: argparse.Namespace) -> int:
    steps = Steps(paths.cache.parent / "image/timings.json")
    facts = trainer_image.ensure(choose(paths, options.kind), Inputs(options.accelerator), steps)
    print(json.dumps(facts) if options.json else facts["image"])
    return 0


_VERBS = {"up": _up, "status": _status, "down": _down, "build": _build, "image": _image}


def choose(paths: Paths, kind: str) -> Cluster:
    """The cluster that is recorded; without a record, the first kind that this machine allows."""
    record = Record.load(paths.record)
    if record is not None:
        if kind not in ("auto", record.kind):
            raise ClusterError(f"--kind {kind}: a cluster of kind {record.kind} is up", remedy="ci/cluster down")
        kind = record.kind
    given = record.kubeconfig if record is not None else given_kubeconfig(paths)
    if kind == "kubeconfig" and given is None:
        raise ClusterError("--kind kubeconfig: KUBECONFIG is not set", remedy="export KUBECONFIG=…")
    if given is not None and kind in ("auto", "kubeconfig"):
        return GivenCluster(paths, given)
    if kind == "kind" or (kind == "auto" and kind_can_run()):
        return KindCluster(paths)
    return LocalCluster(paths)


def _kind_of(cluster: Cluster) -> str:
    return {GivenCluster: "kubeconfig", KindCluster: "kind", LocalCluster: "local"}[type(cluster)]


def _is_ready(facts: dict[str, Any]) -> bool:
    nodes = [row["ready"] == "True" for row in facts["nodes"]]
    add_ons = [row["ready"].partition("/")[0] == row["ready"].partition("/")[2] != "0" for row in facts["add_ons"]]
    return bool(facts["reachable"] and nodes and all(nodes) and all(add_ons))


def _table(facts: dict[str, Any]) -> str:
    lines = [f"{name:<12}{facts[name]}" for name in ("kind", "kubeconfig", "reachable", "ready")]
    if "processes" in facts:
        lines.append(f"{'processes':<12}{facts['processes']} in {', '.join(facts['machines']) or 'no machine'}")
    if "registry" in facts.get("ports", {}):
        lines.append(f"{'registry':<12}localhost:{facts['ports']['registry']}")
    for row in facts["nodes"]:
        lines.append(f"{'node':<12}{row['name']:<24}ready {row['ready']:<9}{row['version']:<10}gpus {row['gpus']}")
    for row in facts["add_ons"]:
        lines.append(f"{'add-on':<12}{row['namespace'] + '/' + row['name']:<36}ready {row['ready']}")
    return "\n".join(lines)


@contextlib.contextmanager
def _only_one(paths: Paths) -> Iterator[None]:
    """Two verbs at once on one state folder would undo each other's work."""
    paths.lock.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ClusterError(
                f"another ci/cluster works on {paths.state}", remedy="wait for it, or stop it"
            ) from error
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ci/cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="up|status|down|build|image")
    for verb in _VERBS:
        sub = verbs.add_parser(verb)
        sub.add_argument(
            "--kind", choices=KINDS, default="auto", help="which kind of cluster (default: the first possible)"
        )
        if verb == "up":
            sub.add_argument("--nodes", type=int, default=2, help=f"nodes, 1 to {MAX_NODES} (default: 2)")
            sub.add_argument("--gpus", type=int, default=0, help="nvidia.com/gpu that each node pretends to have")
        if verb == "image":
            help_text = "none (the default): without what only a GPU needs; cuda: the whole image, 6 GB"
            sub.add_argument("--accelerator", choices=ACCELERATORS, default="none", help=help_text)
        if verb in ("status", "image"):
            sub.add_argument("--json", action="store_true", help="one JSON object")
    return parser
