"""The command line of the drills."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from drills.drill import Drill, NotHereError, Row
from drills.lab import lab, release
from drills.running import WHERE, chosen, ground, run_here, run_there

DESCRIPTION = """\
Breaks things for real, and sees whether the promises hold: no person needed; at most the steps since the last committed
save lost, and none after SIGTERM; never a checkpoint accepted that differs by a bit from what was in memory; never the
last good one deleted; never a loop without end.

    make drills                                       all of them that this machine can do (about half an hour)
    PYTHONPATH=ci:. .venv/bin/python -m drills --list
    PYTHONPATH=ci:. .venv/bin/python -m drills --only rank-killed bit-flipped
"""
EPILOG = """\
exit codes: 0 every promise held; 1 one did not (the row says which); 2 the command line is wrong.
What is written for --table is the table of docs/drills.md.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser("drills", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    add = arguments.add_argument
    add("--list", action="store_true", help="say what there is, and do nothing")
    add("--only", nargs="+", default=[], metavar="NAME", help="these drills, in the order of the list")
    add("--where", choices=list(WHERE), help="only those on one machine, or only those on the local cluster")
    add("--brief", action="store_true", help="as the tests do it: faults that pass last seconds, not a minute")
    add("--json", type=Path, metavar="FILE", help="write the rows there")
    add("--table", type=Path, metavar="FILE", help="write the table there, in Markdown")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run the drills that are asked for, print the table; the exit code."""
    options = parser().parse_args(words)
    try:
        drills = chosen(options.only, where=options.where)
    except KeyError as error:
        print(f"drills: there is no drill {error}; --list names them all", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{drill.name:26} {WHERE[drill.where]:22} {drill.fault}" for drill in drills))
        return 0
    rows: list[Row] = []
    for row in _run(drills, brief=options.brief):
        rows.append(row)
        _say(f"    {_outcome(row)}")
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps([done.to_json() for done in rows], indent=2) + "\n")
    if options.table is not None:
        options.table.write_text(markdown(rows))
    print(markdown(rows))
    return 0 if all(row.held for row in rows) else 1


def _run(drills: Sequence[Drill], *, brief: bool) -> Iterator[Row]:
    """A row after each drill."""
    count = 0

    def begin(drill: Drill) -> None:
        nonlocal count
        count += 1
        _say(f"{count}/{len(drills)} {drill.name}: {drill.fault}")

    here = [drill for drill in drills if drill.where == "processes"]
    if here:
        with ground() as place:
            for drill in here:
                begin(drill)
                yield run_here(drill, place, brief=brief)
    there = [drill for drill in drills if drill.where == "cluster"]
    if there:
        try:
            with lab() as cluster, release(cluster) as scene:
                for drill in there:
                    begin(drill)
                    yield run_there(drill, scene)
        except NotHereError as error:
            for drill in there:
                begin(drill)
                yield Row(drill.name, drill.fault, WHERE[drill.where], skipped=str(error))


def _outcome(row: Row) -> str:
    if row.skipped is not None:
        return f"skipped: {row.skipped}"
    if row.broken:
        return "BROKEN: " + "; ".join(row.broken)
    return f"held, {row.took_seconds:.0f} s: {row.detected}; lost {row.steps_lost} steps, {_seconds(row)} s to the next"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


HEAD = (
    "| fault | tried with | detected by | steps lost | s to next step (goal) | samples repeated / missed | verdict | "
    "what a person had to do |\n|---|---|---|---|---|---|---|---|"
)


def markdown(rows: Sequence[Row]) -> str:
    """The table, as docs/drills.md has it."""
    return "\n".join([HEAD, *map(_line, rows)]) + "\n"


def _line(row: Row) -> str:
    if row.skipped is not None:
        return f"| {row.fault} | {row.where} | not tried: {row.skipped} | | | | | |"
    goal = "" if row.goal_seconds is None else f" (≤ {row.goal_seconds:.0f})"
    samples = "–" if row.repeated is None else f"{row.repeated}{' or more' if row.open_end else ''} / {row.missed}"
    notes = f" ({'; '.join(row.notes)})" if row.notes else ""
    verdict = row.verdict or "–"
    if row.broken:
        verdict = "**BROKEN: " + "; ".join(row.broken).replace("\n", " ")[:300] + "**"
    cells = [
        row.fault, row.where, row.detected + notes, "–" if row.steps_lost is None else str(row.steps_lost),
        _seconds(row) + goal, samples, verdict, row.person,
    ]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _seconds(row: Row) -> str:
    return "–" if row.seconds is None else f"{row.seconds:.1f}"


def start() -> int:
    """From the repository's root, where the tests' own support lies."""
    os.chdir(Path(__file__).resolve().parents[2])
    return main()
