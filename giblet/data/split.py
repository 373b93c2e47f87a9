"""Which TRs train, validate and test: whole held-out runs and contiguous blocks with gaps, never at random.

BOLD lags the film by seconds and both change slowly, so neighbouring TRs are nearly copies of each other: TRs drawn at
random would put the answer into the training set. Between blocks of different use at least `gap_seconds` go unused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from giblet.config.schema import SplitConfig
from giblet.data.manifest import Split
from giblet.errors import DataError

Block = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the split needs to know of a presentation: its run label, its length, and the films in it."""

    id: str
    run: str
    trs: int
    films: frozenset[str]


def split_presentations(
    timelines: Sequence[Timeline], tr: Fraction, config: SplitConfig
) -> tuple[dict[Split, tuple[Block, ...]], list[str]]:
    """Blocks `(presentation, first TR, end TR)` of each use, and notes for the manifest.

    Held-out runs are test whole. Of each other presentation the last part validates, after a gap; where there is only
    one presentation, its last part tests and the part before validates. Raises `DataError` where too little is left.
    """
    gap = math.ceil(Fraction(str(config.gap_seconds)) / tr)
    held_out, notes = _held_out(timelines, config)
    blocks: dict[Split, list[Block]] = {"train": [], "validation": [], "test": []}
    for index, timeline in enumerate(timelines):
        if index in held_out:
            blocks["test"].append((index, 0, timeline.trs))
            continue
        end = timeline.trs
        size = max(round(config.validation_fraction * timeline.trs), 1)
        uses: tuple[Split, ...] = ("validation",) if held_out else ("test", "validation")
        if end - len(uses) * (size + gap) < size:
            if not held_out:
                raise _too_short(timeline, tr, config)
            uses = ()
        for use in uses:
            blocks[use].append((index, end - size, end))
            end -= size + gap
        blocks["train"].append((index, 0, end))
    if not blocks["validation"]:
        raise _too_short(max(timelines, key=lambda timeline: timeline.trs), tr, config)
    return {use: tuple(found) for use, found in blocks.items()}, notes


def use_of_trs(split: dict[Split, tuple[Block, ...]], presentation: int, trs: int) -> list[Split | None]:
    """The use of each TR of a presentation, None in gaps."""
    use: list[Split | None] = [None] * trs
    for name, blocks in split.items():
        for index, first, end in blocks:
            if index == presentation:
                use[first:end] = [name] * (end - first)
    return use


def _held_out(timelines: Sequence[Timeline], config: SplitConfig) -> tuple[set[int], list[str]]:
    """Indices of presentations that test."""
    labels = {_label(timeline.run) for timeline in timelines}
    if config.test_runs is not None:
        wanted = {_label(run) for run in config.test_runs}
        if wanted - labels or not labels - wanted:
            raise DataError(
                f"data.split.test_runs is {', '.join(config.test_runs)}; the runs are {', '.join(sorted(labels))}",
                remedy="name runs that are there, and leave at least one to train on",
            )
    elif len(labels) > 1:
        wanted = {_label(timelines[-1].run)}
    else:
        return set(), []
    held_out = {index for index, timeline in enumerate(timelines) if _label(timeline.run) in wanted}
    if not held_out:
        return held_out, []
    tested = frozenset[str]().union(*(timelines[index].films for index in held_out))
    shared = sorted({film for i, t in enumerate(timelines) if i not in held_out for film in t.films & tested})
    if shared:
        return held_out, [f"the held-out runs show films that training runs show too: {', '.join(shared)}"]
    return held_out, []


def _label(run: str) -> str:
    """Run labels `1` and `01` are the same run."""
    return str(int(run)) if run.isdigit() else run


def _too_short(timeline: Timeline, tr: Fraction, config: SplitConfig) -> DataError:
    return DataError(
        f"{timeline.id} lasts {float(timeline.trs * tr):g} s, too short to be split: data.split.validation_fraction "
        f"{config.validation_fraction:g} and gaps of {config.gap_seconds:g} s leave less for training than for "
        "validation",
        remedy="use longer runs, or more of them and name test runs in data.split.test_runs",
    )
