"""The cluster of a smoke run: what it must have, the job's course, the pods and their logs."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kubeflow.training import TrainingClient
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from smokerun.errors import CannotStartError, SmokeError
from smokerun.release import Release

ANSWER_SECONDS = 15

GONE_SECONDS = 300
"""A worker may take its whole grace period."""

POLL_SECONDS = 1.0


@dataclass
class Cluster:
    """Clients for one context. The PyTorchJob goes through Kubeflow's client, all else through Kubernetes'."""

    context: str | None
    namespace: str
    training: Any = field(init=False)
    core: Any = field(init=False)
    batch: Any = field(init=False)

    def __post_init__(self) -> None:
        """Connect. Raises CannotStartError if there is no cluster, or it does not answer."""
        try:
            self.training = TrainingClient(context=self.context, namespace=self.namespace)
            api = config.new_client_from_config(context=self.context)
        except (ConfigException, OSError) as error:
            try:
                config.load_incluster_config()
                self.training, api = TrainingClient(namespace=self.namespace), client.ApiClient()
            except ConfigException:
                remedy = "set KUBECONFIG, or name a context with --kube-context (kubectl config get-contexts)"
                raise CannotStartError(f"there is no cluster to talk to: {error}", remedy=remedy) from None
        api.configuration.retries = 1
        self.core, self.batch = client.CoreV1Api(api), client.BatchV1Api(api)
        self._api = api

    def check(self, release: Release) -> None:
        """Whether all is there that this release needs. Raises CannotStartError that names what is not."""
        server = self._api.configuration.host
        self._ask(f"cluster {server}", client.VersionApi(self._api).get_code)
        try:
            found = client.CustomObjectsApi(self._api).get_api_resources("kubeflow.org", "v1")
            kinds = {resource.kind for resource in found.resources}
        except ApiException as error:
            kinds = set() if error.status == 404 else {"PyTorchJob"}
        if "PyTorchJob" not in kinds:
            raise CannotStartError(
                "this cluster has no PyTorchJobs: the Kubeflow training operator is not installed",
                remedy="kubectl apply --server-side -k k8s/operator (k8s/runbook.md)",
            )
        create = f"kubectl create namespace {self.namespace}, or apply k8s/namespace"
        self._ask(f"namespace {self.namespace}", self.core.read_namespace, self.namespace, remedy=create)
        for name, keys in release.secrets().items():
            self.secret(name, keys)

    def secret(self, name: str, keys: set[str]) -> dict[str, str]:
        """A secret's values. Raises CannotStartError if it, or one of the keys, is not there."""
        literals = " ".join(f"--from-literal={key}=…" for key in sorted(keys))
        create = f"kubectl -n {self.namespace} create secret generic {name} {literals}"
        read = self.core.read_namespaced_secret
        found = self._ask(f"secret {name}", read, name, self.namespace, remedy=create)
        data = found.data or {}
        if missing := keys - set(data):
            raise CannotStartError(
                f"secret {self.namespace}/{name} has no key {', '.join(sorted(missing))}; it has "
                f"{', '.join(sorted(data)) or 'none'}",
                remedy="s3.accessKeyIdKey and s3.secretAccessKeyKey name other keys, or create it anew: " + create,
            )
        return {key: base64.b64decode(data[key]).decode() for key in keys}

    def _ask(self, what: str, request: Callable[..., Any], *words: Any, remedy: str | None = None) -> Any:
        """An answer, or CannotStartError in words that a person can use."""
        try:
            return request(*words, _request_timeout=ANSWER_SECONDS)
        except ApiException as error:
            if error.status == 404:
                raise CannotStartError(f"there is no {what}", remedy=remedy) from None
            raise CannotStartError(f"{what}: the API server answered {error.status} {error.reason}") from None
        except (HTTPError, OSError) as error:
            remedy = "is the cluster up, and the address in the kubeconfig right? (kubectl version)"
            raise CannotStartError(f"{what} does not answer: {error}", remedy=remedy) from None

    def job(self, name: str) -> Any:
        """The PyTorchJob, through Kubeflow's client."""
        return self.training.get_job(name, timeout=ANSWER_SECONDS)

    def pods(self, release: Release) -> list[Any]:
        """Every pod of the release, but hooks and tests."""
        selector = f"app.kubernetes.io/instance={release.name},app.kubernetes.io/component notin (prepare,test)"
        found = self.core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=ANSWER_SECONDS)
        return list(found.items)

    def left(self, release: Release) -> list[str]:
        """Jobs and pods of the release that are still there, as kubectl names them."""
        selector = f"app.kubernetes.io/instance={release.name}"
        words = {"label_selector": selector, "_request_timeout": ANSWER_SECONDS}
        custom = client.CustomObjectsApi(self._api)
        training = custom.list_namespaced_custom_object("kubeflow.org", "v1", self.namespace, "pytorchjobs", **words)
        return [
            *[f"pytorchjob/{item['metadata']['name']}" for item in training["items"]],
            *[f"job/{item.metadata.name}" for item in self.batch.list_namespaced_job(self.namespace, **words).items],
            *[f"pod/{item.metadata.name}" for item in self.core.list_namespaced_pod(self.namespace, **words).items],
        ]

    def wait_until_gone(self, release: Release) -> None:
        """Return once nothing runs of an uninstalled release. Raises SmokeError if something stays."""
        deadline = time.monotonic() + GONE_SECONDS
        while left := self._ask(f"release {release.name}", lambda **_: self.left(release)):
            if time.monotonic() > deadline:
                raise SmokeError(
                    f"uninstalled, and {GONE_SECONDS} s later there still is {', '.join(left)}",
                    remedy=f"kubectl -n {self.namespace} describe {left[0]}",
                )
            time.sleep(POLL_SECONDS)

    def verification(self, name: str) -> Any:
        """The verification Job, or None."""
        try:
            return self.batch.read_namespaced_job(name, self.namespace, _request_timeout=ANSWER_SECONDS)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def warnings(self, name: str) -> list[str]:
        """Warning events of one object, oldest first."""
        found = self.core.list_namespaced_event(
            self.namespace,
            field_selector=f"involvedObject.name={name},type=Warning",
            _request_timeout=ANSWER_SECONDS,
        )
        return [f"{event.reason}: {event.message}" for event in found.items]


class LogFollower:
    """Prints the logs of pods as they come, each line with its pod's name, each pod once."""

    def __init__(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        self._cluster, self._say = cluster, say
        self._threads: dict[str, threading.Thread] = {}

    def follow(self, pod: Any, container: str) -> None:
        """Follow a container of a pod that has started; does nothing the second time."""
        key = f"{pod.metadata.uid}/{container}"
        if key not in self._threads:
            words = (pod.metadata.name, container)
            self._threads[key] = threading.Thread(target=self._print, args=words, daemon=True)
            self._threads[key].start()

    def drain(self, timeout_seconds: float = 10) -> None:
        """Wait until what ended pods wrote is printed."""
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads.values():
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _print(self, pod: str, container: str) -> None:
        try:
            for line in self._lines(pod, container):
                self._say(f"[{pod}] {line}")
        except (ApiException, HTTPError, OSError) as error:
            self._say(f"[{pod}] (its log cannot be followed: {type(error).__name__})")

    def _lines(self, pod: str, container: str) -> Iterator[str]:
        read = self._cluster.core.read_namespaced_pod_log
        yield from watch.Watch().stream(read, name=pod, namespace=self._cluster.namespace, container=container)
