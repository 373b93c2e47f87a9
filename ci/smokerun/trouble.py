"""Why a pod does not start: read from its status, so that nobody waits for a timeout to be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_IMAGE = "check the image's name and tag, that this cluster reaches its registry, and imagePullSecrets"
_REMEDIES = {
    "InvalidImageName": _IMAGE,
    "ErrImageNeverPull": "image.pullPolicy is Never and the node does not have it; push it, or choose IfNotPresent",
    "ErrImagePull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "CreateContainerConfigError": "create what the message names in this namespace (kubectl create secret …)",
    "CreateContainerError": "kubectl describe pod says more; usually a mount or the container runtime",
    "RunContainerError": "is this a giblet image (docker/)? `giblet --version` must run in it",
    "CrashLoopBackOff": "its log, above, ends with the reason",
    "Unschedulable": "free what the message names, ask for less (resources, workers.gpusPerWorker), or add nodes",
}
_LASTING = {"ErrImagePull", "CreateContainerError", "CrashLoopBackOff", "Unschedulable"}


@dataclass(frozen=True)
class Trouble:
    """One pod's reason not to start. `lasting`: it may pass by itself, so it counts only if it lasts."""

    pod: str
    reason: str
    message: str
    lasting: bool

    @property
    def remedy(self) -> str:
        """What a person does about it."""
        return _REMEDIES.get(self.reason, "kubectl describe pod says more")


def trouble_of(pod: Any) -> Trouble | None:
    """What keeps a pod (a `V1Pod`) from starting; None while there is nothing to say."""
    if pod.status is None or pod.metadata.deletion_timestamp is not None:
        return None
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False" and condition.reason == "Unschedulable":
            return Trouble(pod.metadata.name, "Unschedulable", condition.message or "", lasting=True)
    for status in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting = status.state.waiting if status.state is not None else None
        if waiting is not None and waiting.reason in _REMEDIES:
            where = f"container {status.name}: {waiting.message or waiting.reason}"
            return Trouble(pod.metadata.name, waiting.reason, where, lasting=waiting.reason in _LASTING)
    return None


def phase_of(pod: Any) -> str:
    """Where a pod is, in a word or two: `scheduled`, `init prepare`, `Running`, …"""
    status = pod.status
    if status is None:
        return "unknown"
    if status.phase != "Pending":
        return str(status.phase)
    for init in status.init_container_statuses or []:
        if init.state is not None and init.state.running is not None:
            return f"init {init.name}"
    conditions = {condition.type: condition.status for condition in status.conditions or []}
    return "starting" if conditions.get("PodScheduled") == "True" else "waiting for a node"
