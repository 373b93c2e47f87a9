"""`python -m tests.alertdrill`: every drill, a table of what fired when, and exit 1 if one alert did not."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from giblet.storage.embedded import embedded_s3
from tests.alertdrill.drills import DRILLS, Drill
from tests.alertdrill.stage import PATIENCE_SECONDS, Ground, Outcome, Stage, ground
from tests.support import nodes
from tests.support.prepared import make_prepared


def main() -> int:
    """Play the drills that are asked for, some side by side."""
    parser = argparse.ArgumentParser(prog="python -m tests.alertdrill", description=__doc__)
    names = [drill.run for drill in DRILLS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="DRILL", help=", ".join(names))
    parser.add_argument("--scale", type=float, default=20.0, help="the rules' times are divided by this (20)")
    parser.add_argument("--at-once", type=int, default=3, help="drills at a time (3)")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    options = parser.parse_args()
    chosen = [drill for drill in DRILLS if drill.run in options.only]
    nodes.DEADLINE_SECONDS = PATIENCE_SECONDS  # several drills at a time
    outcomes = play(chosen, options.scale, options.at_once)
    print(json.dumps([asdict(row) for row in outcomes], indent=1) if options.json else table(outcomes, options.scale))
    return 1 if any(row.fault for row in outcomes) else 0


def play(drills: list[Drill], scale: float, at_once: int) -> list[Outcome]:
    """What became of every alert of these drills, in their order."""
    with tempfile.TemporaryDirectory(prefix="giblet-alertdrill-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        dataset = make_prepared(folder / "dataset").path
        with (
            embedded_s3(folder / "s3") as server,
            ground(folder, dataset, server, scale, [drill.run for drill in drills]) as shared,
            ThreadPoolExecutor(at_once) as pool,
        ):
            played = [pool.submit(one, shared, drill) for drill in drills]
            return [row for future in played for row in future.result()]


def one(shared: Ground, drill: Drill) -> list[Outcome]:
    """A drill from its begin to its end; a fault is told in its rows, and stops no other drill."""
    stage = Stage(shared, drill.run, [Outcome(alert, drill.run, drill.cause) for alert in drill.alerts])
    began = time.monotonic()
    tell(f"{drill.run}: {drill.cause}")
    try:
        drill.play(stage)
    except Exception as error:
        traceback.print_exc()
        for row in stage.outcomes:
            row.fault = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        stage.end()
    for row in stage.outcomes:
        tell(f"{drill.run}: {row.alert} fired after {row.fired_seconds} s, silent after {row.resolved_seconds} s")
    tell(f"{drill.run}: over after {time.monotonic() - began:.0f} s")
    return stage.outcomes


def table(outcomes: list[Outcome], scale: float) -> str:
    """Markdown, for docs/monitoring.md."""
    lines = [f"| alert | cause | fired after (s, times / {scale:g}) | silent after |", "|---|---|---|---|"]
    for row in outcomes:
        fired, silent = (
            "no" if seconds is None else f"{seconds:.0f}" for seconds in (row.fired_seconds, row.resolved_seconds)
        )
        fault = f" ({row.fault})" if row.fault else ""
        lines.append(f"| `{row.alert}` | {row.cause}{fault} | {fired} | {silent} |")
    return "\n".join(lines)


def tell(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
