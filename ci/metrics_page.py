"""docs/metrics.md, from giblet/telemetry/metrics.py; ci/generated.py writes it."""

from __future__ import annotations

from giblet.telemetry.metrics import METRICS

HEAD = """\
<!-- Generated from giblet/telemetry/metrics.py by `make generated`; do not edit. -->

# Metrics

Every one carries `run`; Prometheus adds `namespace` and `pod`. What they are for: [monitoring.md](monitoring.md).

| name | kind | labels | what |
|---|---|---|---|
"""


def metrics_page() -> str:
    """The page."""
    rows = (
        f"| `{metric.full_name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels[1:])} "
        f"| {metric.help} |\n"
        for metric in METRICS
    )
    return HEAD + "".join(rows)
