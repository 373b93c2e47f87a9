"""helm/giblet, rendered without a cluster, and the judges of what it renders.

chart = render({"workers": {"max": 2}})            # on top of the smallest values that work
chart.one("PyTorchJob")["spec"]["nprocPerNode"]
refusal({"workers": {"min": 2}})                   # what helm says instead of rendering
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cluster import REPOSITORY

# isort: split
from charttools.schemas import Schemas
from charttools.tools import ChartTools
from localcluster.shell import ClusterError

CHART = REPOSITORY / "helm/giblet"

Object = dict[str, Any]

MINIMAL: Object = {
    "image": {"repository": "registry.example.org/lab/giblet", "tag": "1"},
    "config": {
        "data": {"prepared": "s3://bucket/lab/datasets/0123456789abcdef"},
        "checkpoint": {"url": "s3://bucket/lab"},
    },
}
"""The smallest values that work."""

MONITORING_APIS = ("monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule")


@dataclass(frozen=True)
class Rendering:
    """The objects of one release, hooks included."""

    objects: tuple[Object, ...]
    text: str

    def all(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return [item for item in self.objects if item["kind"] == kind]

    def one(self, kind: str, suffix: str = "") -> Object:
        """The only object of a kind whose name ends so."""
        found = [item for item in self.all(kind) if item["metadata"]["name"].endswith(suffix)]
        assert len(found) == 1, f"{len(found)} objects {kind} …{suffix}: {[name(item) for item in found]}"
        return found[0]

    @property
    def names(self) -> set[str]:
        """Kind/name of every object."""
        return {name(item) for item in self.objects}

    def pods(self) -> dict[str, Object]:
        """Every pod that the cluster would make, as a Pod, by the object that it stems from."""
        found = {}
        for item in self.objects:
            for path, template in _templates(item):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template.get("metadata", {}), **template}
                found[f"{name(item)}{path}"] = {key: pod[key] for key in ("apiVersion", "kind", "metadata", "spec")}
        return found

    def pod(self, owner: str) -> Object:
        """The spec of the pod of one object, named as kind/name."""
        found = [pod["spec"] for where, pod in self.pods().items() if where.startswith(owner)]
        assert len(found) == 1, f"{owner}: among {sorted(self.pods())}"
        return found[0]

    @property
    def config(self) -> Object:
        """The trainer's configuration, as the pods see it."""
        return yaml.safe_load(self.one("ConfigMap", "-config")["data"]["giblet.yaml"])["config"]


def name(item: Object) -> str:
    """Kind/name."""
    return f"{item['kind']}/{item['metadata']['name']}"


def labels(item: Object) -> dict[str, str]:
    """The labels of an object or pod."""
    found: dict[str, str] = item["metadata"].get("labels", {})
    return found


def container(spec: Object, called: str) -> Object:
    """A container or init container of a pod's spec."""
    both = [*spec.get("initContainers", []), *spec["containers"]]
    return next(item for item in both if item["name"] == called)


def environment(holder: Object) -> dict[str, Any]:
    """A container's environment variables: value, or where it comes from."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in holder["env"]}


def merged(*layers: Mapping[str, Any]) -> Object:
    """Values on top of each other, as Helm merges them."""
    result: Object = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def render(
    values: Mapping[str, Any] | None = None,
    *,
    files: Sequence[Path] = (),
    release: str = "giblet-prod",
    apis: Sequence[str] = (),
) -> Rendering:
    """The chart with MINIMAL under `files` (if there are none), and `values` on top."""
    done = _template(json.dumps(values or {}), tuple(files), release, tuple(apis))
    assert done.returncode == 0, done.stderr
    objects = tuple(item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item)
    return Rendering(objects, done.stdout)


def refusal(values: Mapping[str, Any], *, files: Sequence[Path] = (), release: str = "giblet-prod") -> str:
    """What helm says to values that it refuses; fails if it renders them."""
    done = _template(json.dumps(values), tuple(files), release, ())
    assert done.returncode != 0, "helm rendered what cannot work"
    return done.stderr


def helm(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """helm without a cluster, configuration or cache of anybody's."""
    with tempfile.TemporaryDirectory() as home:
        isolated = {"HOME": home, "PATH": os.environ["PATH"], "KUBECONFIG": f"{home}/none"} | environment
        command = [str(tool("helm")), *map(str, words)]
        return subprocess.run(command, env=isolated, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def values_file(values: Mapping[str, Any]) -> Iterator[Path]:
    """A values file; JSON is YAML."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)
        file.flush()
        yield Path(file.name)


@functools.cache
def tool(called: str) -> Path:
    """A program of ci/charttools; without it a test skips with the reason, but fails in CI."""
    try:
        path: Path = getattr(ChartTools.default(), called)
    except ClusterError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return path


@functools.cache
def schemas() -> Schemas:
    """The strict schemas of all kinds."""
    if not os.environ.get("CI"):
        try:
            ChartTools.default().module("prometheus-operator")
        except ClusterError as error:
            pytest.skip(str(error))
    return Schemas()


def schema_faults(rendering: Rendering) -> dict[str, list[str]]:
    """What Kubernetes' and the operators' schemas say of each object; {} if nothing."""
    found = {name(item): schemas().faults(item) for item in rendering.objects}
    return {where: faults for where, faults in found.items() if faults}


def admission_faults(objects: Mapping[str, Object]) -> dict[str, list[str]]:
    """What the operator's webhook says of PyTorchJobs, and Pod Security `restricted` of Pods; {} if nothing."""
    done = subprocess.run(
        [tool("admission")], input=json.dumps(list(objects.values())), capture_output=True, text=True, check=True
    )
    return {where: faults for where, faults in zip(objects, json.loads(done.stdout), strict=True) if faults}


@functools.cache
def _template(
    values: str, files: tuple[Path, ...], release: str, apis: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    with contextlib.ExitStack() as stack:
        layers = files or (stack.enter_context(values_file(MINIMAL)),)
        words: list[str | Path] = ["template", release, CHART, "--namespace", "lab"]
        for file in (*layers, stack.enter_context(values_file(json.loads(values)))):
            words += ["--values", file]
        for api in apis:
            words += ["--api-versions", api]
        return helm(*words)


def _templates(item: Any, path: str = "") -> Iterator[tuple[str, Object]]:
    """Everything in an object that holds a pod's spec, wherever it stands."""
    if isinstance(item, dict):
        if "containers" in item.get("spec", {}) if isinstance(item.get("spec"), dict) else False:
            yield path, item
            return
        for key, value in item.items():
            yield from _templates(value, f"{path}.{key}")
    elif isinstance(item, list):
        for index, value in enumerate(item):
            yield from _templates(value, f"{path}[{index}]")
