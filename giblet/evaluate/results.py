"""What an evaluation holds: facts of the run, one subject's scores, and where everything was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from giblet.evaluate.ceiling import Ceiling
from giblet.evaluate.correlation import FloatArray
from giblet.evaluate.maps import MaskSpace
from giblet.evaluate.subject import Rows, System

MINIMUM_SHIFT_SECONDS = 24.0
"""Shifts of the null are at least the haemodynamic response's length away from no shift."""


@dataclass(frozen=True)
class RunFacts:
    """What the caller knows of the run that the model comes from; all of it goes into the report as it is.

    `history` is the checkpoint's: under `train` and `validation` one list a quantity, `epoch` among them. `statements`
    are sentences such as how a run was interrupted and resumed.
    """

    run: str | None = None
    step: int | None = None
    epoch: int | None = None
    checkpoint: str | None = None
    verdict: str | None = None
    verdict_detail: str | None = None
    statements: tuple[str, ...] = ()
    history: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class SubjectResult:
    """Everything measured for one subject; V voxels, T held-out TRs."""

    id: str
    space: MaskSpace
    rows: Rows
    bold: FloatArray
    signal: FloatArray | None
    ceiling: Ceiling
    voxels: NDArray[np.bool_]
    """Over which means are taken: the responsive ones where they are known, else all that vary."""
    model: System
    ridge: System | None
    unfiltered_mean_r: float
    band_weights: dict[str, float]


@dataclass(frozen=True)
class EvaluationResult:
    """`summary` is what `evaluation.json` holds."""

    summary: dict[str, Any]
    folder: Path
    json_path: Path
    report_path: Path
    map_paths: tuple[Path, ...]
