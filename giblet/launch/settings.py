"""What a worker pod is told: torchrun's own `PET_*` variables (the operator sets them), each also a flag.

Nothing set means one node that needs nobody else.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from giblet.errors import ConfigError

FLAGS = (
    "rdzv_endpoint", "rdzv_backend", "rdzv_id", "rdzv_conf", "nnodes", "nproc_per_node", "max_restarts",
)  # fmt: skip
"""Each is `--<name>` on the command line and `PET_<NAME>` in the environment; the flag wins."""
TERMINATION_LOG = Path("/dev/termination-log")
DEFAULT_PORT = 29400


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """One node's part in a job. `endpoint` None: this node is alone."""

    job: str
    endpoint: str | None = None
    rendezvous: Mapping[str, str] = field(default_factory=dict)
    min_nodes: int = 1
    max_nodes: int = 1
    processes: int | None = None
    max_restarts: int = 10
    shutdown_seconds: float = 900.0
    grace_seconds: float | None = None
    pod: str = "local"
    termination_log: Path | None = None


def read_settings(
    flags: Mapping[str, str | None], environment: Mapping[str, str], *, run: str, gpus: int = 0
) -> LaunchSettings:
    """Flags before `PET_*` before defaults. Raises `ConfigError` with every fault."""
    faults: list[str] = []

    def told(name: str) -> str | None:
        value = flags.get(name)
        return value if value is not None else environment.get(f"PET_{name.upper()}")

    def number(source: str, value: str | None, default: float | None, least: float) -> float | None:
        try:
            found = default if value in (None, "") else float(value or "")
        except ValueError:
            found = -1.0
        if found is not None and found < least:
            faults.append(f"{source} is {value!r}; it must be a number of at least {least:g}")
            return default
        return found

    low, _, high = (told("nnodes") or "1").partition(":")
    least = number("nnodes (PET_NNODES)", low, 1, 1)
    most = number("nnodes (PET_NNODES)", high or low, 1, 1)
    if (least or 1) > (most or 1):
        faults.append(f"nnodes (PET_NNODES) is {told('nnodes')}; write MIN:MAX with MIN <= MAX")
    per_node = told("nproc_per_node")
    if per_node in ("auto", "gpu"):
        per_node = str(max(gpus, 1))
    processes = number("nproc_per_node (PET_NPROC_PER_NODE)", per_node, None, 1)
    restarts = number("max_restarts (PET_MAX_RESTARTS)", told("max_restarts"), 10, 0)
    shutdown = number("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", environment.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT"), 900, 0)
    grace = number("GIBLET_GRACE_SECONDS", environment.get("GIBLET_GRACE_SECONDS"), None, 0)
    backend = told("rdzv_backend") or "c10d"
    if backend != "c10d":
        faults.append(f"rdzv_backend (PET_RDZV_BACKEND) is {backend}; only c10d is supported")
    endpoint = told("rdzv_endpoint") or None
    if endpoint is None and (most or 1) > 1:
        faults.append(f"nnodes is {told('nnodes')} and there is no rdzv_endpoint (PET_RDZV_ENDPOINT) to meet at")
    conf = _pairs(told("rdzv_conf") or "", faults)
    if faults:
        raise ConfigError(
            "the launcher's settings do not hold together\n" + "\n".join(f"  - {fault}" for fault in faults),
            remedy="the chart sets them all; see docs/launch.md",
        )
    return LaunchSettings(
        job=told("rdzv_id") or environment.get("GIBLET_JOB") or run,
        endpoint=endpoint,
        rendezvous=conf,
        min_nodes=int(least or 1),
        max_nodes=int(most or 1),
        processes=None if processes is None else int(processes),
        max_restarts=int(restarts or 0),
        shutdown_seconds=float(shutdown or 0),
        grace_seconds=grace,
        pod=environment.get("GIBLET_POD") or socket.gethostname(),
        termination_log=termination_log(environment),
    )


def _pairs(text: str, faults: list[str]) -> dict[str, str]:
    pairs = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            faults.append(f"rdzv_conf (PET_RDZV_CONF) has {pair!r}; write key=value,key=value")
        pairs[key.strip()] = value.strip()
    return pairs


def termination_log(environment: Mapping[str, str]) -> Path | None:
    """Where Kubernetes looks for a container's last words; None outside of it."""
    if named := environment.get("GIBLET_TERMINATION_LOG"):
        return Path(named)
    return TERMINATION_LOG if TERMINATION_LOG.exists() and "KUBERNETES_SERVICE_HOST" in environment else None


def grace_warnings(settings: LaunchSettings, *, margin_seconds: float) -> list[str]:
    """Why the time that Kubernetes gives after SIGTERM is too short; empty if it is enough or unknown."""
    if settings.grace_seconds is None or settings.grace_seconds >= settings.shutdown_seconds + margin_seconds:
        return []
    return [
        f"terminationGracePeriodSeconds {settings.grace_seconds:g} leaves less than {margin_seconds:g} s after "
        f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT {settings.shutdown_seconds:g}: the pod may be killed before a save has ended "
        "and before its logs and its cause are kept"
    ]
