"""promtool and Prometheus for tests, and which metrics a query names."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from giblet.telemetry.metrics import METRICS
from tests.support.cluster import REPOSITORY

RULES = REPOSITORY / "helm/giblet/files/monitoring/rules.yaml"
DASHBOARDS = REPOSITORY / "helm/giblet/files/monitoring"
EXTERNAL = {"DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE",
            "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "ALERTS", "up"}  # fmt: skip
"""Metrics of others: of NVIDIA's dcgm-exporter, and Prometheus's own."""
_NAME = re.compile(r"(?<![\w:.$])(?:giblet[_:][\w:]+|DCGM_\w+|ALERTS|up)(?![\w:(])")


@cache
def program(name: str) -> Path:
    """prometheus or promtool as ci/cluster builds them; skips where they cannot be built and are not installed."""
    from localcluster.settings import Paths
    from localcluster.tools import Toolbox

    path = Toolbox(Paths.from_environment().cache).go(name)
    if path.exists():
        return path
    installed = shutil.which(name)
    if installed is None:
        pytest.skip(f"{name} is neither installed nor built (ci/cluster build)")
    return Path(installed)


def promtool() -> Path:
    """The path of promtool."""
    return program("promtool")


def known_metrics() -> set[str]:
    """Every series name that giblet exports, and those of others that dashboards and rules use."""
    names = set(EXTERNAL)
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names.update(metric.full_name + suffix for suffix in suffixes)
    return names


def metrics_in(query: str) -> set[str]:
    """Names of metrics and recorded series in a query; alternatives in a `__name__` matcher too."""
    bare = re.sub(r'(?<!__name__=~)"[^"]*"', '""', query)
    return set(_NAME.findall(bare.replace("|", " ").replace('"', " ")))
