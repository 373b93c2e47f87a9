"""The tables of what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scale import prices

SAVES_A_MONTH = 30 * 24 * 2
"""One every half an hour."""
KEPT = 5
"""The last three, the best and the newest verified."""
_STAGES = ("install and bind", "at rest, 30 s", "one worker lost", "uninstall")

Found = dict[str, list[dict[str, Any]]]


def load(folder: Path) -> Found:
    """Every result that is kept there, by part, smallest first."""
    return {
        part: sorted((json.loads(file.read_text()) for file in folder.glob(f"{part}-*.json")), key=lambda r: r[key])
        for part, key in (("checkpoint", "world_size"), ("cluster", "workers"))
    }


def tables(found: Found) -> str:
    """Markdown, as in docs/scale.md."""
    parts = []
    if found["checkpoint"]:
        parts += [_table("ranks", "world_size", found["checkpoint"], rows) for rows in (_SIZES, _TIMES, _REQUESTS)]
    if found["cluster"]:
        parts += [_table("workers of 8 GPUs", "workers", found["cluster"], _CLUSTER)]
    return "\n\n".join(parts)


def _table(title: str, key: str, results: list[dict[str, Any]], rows: dict[str, Any]) -> str:
    lines = [f"| {title} | " + " | ".join(f"{result[key]:,}" for result in results) + " |"]
    lines.append("|---|" + "---:|" * len(results))
    lines += [
        f"| {name} | " + " | ".join(str(cell(result)) for result in results) + " |" for name, cell in rows.items()
    ]
    return "\n".join(lines)


def _reading(step: str, name: str, field: str = "processor_seconds") -> Any:
    def cell(result: dict[str, Any]) -> str:
        reading = result["steps"][step]["readings"].get(name)
        if reading is None:
            return "–"
        return f"{reading[field] / 1e6:,.0f} MB" if field == "peak_bytes" else f"{reading[field]:,.2f} s"

    return cell


def _count(step: str, *names: str) -> Any:
    return lambda result: f"{sum(result['steps'][step]['requests'].get(name, 0) for name in names):,}"


def _dollars_a_save(result: dict[str, Any]) -> float:
    return prices.requests_dollars(result["steps"]["next save"]["requests"])


def _dollars_a_month(result: dict[str, Any]) -> str:
    kept = (result["checkpoint_bytes"] + result["manifest_bytes"]) * KEPT
    return f"${_dollars_a_save(result) * SAVES_A_MONTH:,.0f} + ${prices.storage_dollars(kept):,.0f}"


_SIZES = {
    "chunks": lambda r: f"{r['chunks']:,}",
    "checkpoint": lambda r: f"{r['checkpoint_bytes'] / 1e9:,.0f} GB",
    "manifest": lambda r: f"{r['manifest_bytes'] / 1e6:,.1f} MB",
    "manifest bytes a chunk": lambda r: f"{r['manifest_bytes'] / r['chunks']:,.0f}",
    "gathered by the first rank, first save": lambda r: f"{r['steps']['first save']['gathered_bytes'] / 1e6:,.1f} MB",
    "gathered, later saves": lambda r: f"{r['steps']['next save']['gathered_bytes'] / 1e6:,.1f} MB",
}
_TIMES = {
    "first save: training waits for": _reading("first save", "stall"),
    "– of which one rank's own plan": _reading("first save", "local plan"),
    "– of which the global plan": _reading("first save", "global plan"),
    "first save: memory rises by": _reading("first save", "stall", "peak_bytes"),
    "later saves: training waits for": _reading("next save", "stall"),
    "later saves: background": _reading("next save", "background"),
    "– reading all ranks' records": _reading("next save", "gather"),
    "– merging the manifest": _reading("next save", "merge"),
    "– asking for every object (wall)": _reading("next save", "confirm", "seconds"),
    "– serialising": _reading("next save", "serialise"),
    "– parsing it back": _reading("next save", "parse"),
    "– retention (wall)": _reading("next save", "retention", "seconds"),
    "later saves: memory rises by": _reading("next save", "background", "peak_bytes"),
    "resume: finding it": _reading("resume", "begin"),
    "resume: loading, the first rank's": _reading("resume", "load"),
    "– of which DCP's view of it": _reading("resume", "metadata"),
    "– of which its plan": _reading("resume", "load plan"),
    "resume: memory rises by": _reading("resume", "load", "peak_bytes"),
}
_REQUESTS = {
    "save: parts": _count("next save", "UploadPart"),
    "save: other PUTs": _count("next save", "PutObject", "CreateMultipartUpload", "CompleteMultipartUpload"),
    "save: HEAD": _count("next save", "HeadObject"),
    "save: LIST": _count("next save", "ListObjectsV2", "ListMultipartUploads"),
    "save: GET": _count("next save", "GetObject"),
    "save: DELETE (retention)": _count("next save", "DeleteObject"),
    "resume: GET of one rank": _count("resume", "GetObject"),
    "resume: LIST": _count("resume", "ListObjectsV2"),
    "requests of a save": lambda r: f"${_dollars_a_save(r):.2f}",
    "a month: requests + storage": _dollars_a_month,
}


def _calls(stage: str) -> Any:
    return lambda r: f"{sum(r['stages'][stage]['calls'].values()):,} in {r['stages'][stage]['seconds']:.0f} s"


_CLUSTER = {
    "seconds from helm install to all workers bound": lambda r: f"{r['seconds_to_all_pods']:.1f}",
    "objects in the namespace": lambda r: f"{sum(r['objects'].values()):,}",
    "– pods, services": lambda r: f"{r['objects'].get('Pod', 0)}, {r['objects'].get('Service', 0)}",
    **{f"writes to the API: {stage}": _calls(stage) for stage in _STAGES},
    "bytes of the PyTorchJob": lambda r: f"{r['job_bytes']:,}",
    "bytes of a worker's pod": lambda r: f"{r['pod_bytes']:,}",
    "operator: memory": lambda r: f"{r['operator_memory_bytes'] / 1e6:.0f} MB",
    "operator: processor seconds": lambda r: f"{r['operator_processor_seconds']:.1f}",
    "disruption budget": lambda r: r["disruptions"],
    "left behind": lambda r: ", ".join(r["left_behind"]) or "nothing",
}
