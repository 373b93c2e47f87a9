"""The checks that need one pass over the bytes: each a function from the evidence to a `Check`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from giblet.config.schema import GibletConfig
from giblet.verify.expectation import OPTIMIZER_STATES, Expectation
from giblet.verify.report import Check, Status, named
from giblet.verify.sources import Chunk, Source
from giblet.verify.statistics import TensorStatistics, is_second_moment
from giblet.verify.stream import StreamResult

_OPTIMIZER = "optimizer."
_PAIRWISE_CHUNKS = 512
"""Up to so many chunks of one tensor are compared with each other for overlap."""


@dataclass(frozen=True)
class Evidence:
    """What the judge has: the checkpoint, what its bytes say, and what the configuration expects."""

    source: Source
    result: StreamResult
    expectation: Expectation
    config: GibletConfig | None
    magnitude_limit: float
    steps_per_epoch: int | None = None

    @property
    def statistics(self) -> dict[str, TensorStatistics]:
        """Of each tensor."""
        return self.result.statistics

    @property
    def foreign(self) -> bool:
        """Whether another program wrote it."""
        return self.source.kind != "giblet"


def complete(evidence: Evidence) -> Check:
    """Every object is there, whole, with its checksum; every element of every tensor is in exactly one chunk."""
    faults = evidence.result.faults + list(_uncovered(evidence.source))
    names = tuple(name for name in evidence.source.tensors if any(f.startswith(f"{name}: ") for f in faults))
    names += tuple(name for name in _lost(evidence) if name not in names)
    if faults:
        lost = f"; tensors affected: {named(names)}" if names else ""
        return Check("complete", "failed", _sentences(faults) + lost, names)
    objects = len({item.key for item in evidence.source.objects})
    checked = evidence.result.checksums_checked
    what = f"{checked:,} checksums agree" if checked else "sizes agree; no checksums were recorded"
    return Check("complete", "passed", f"{objects:,} objects, {evidence.result.bytes_read:,} bytes, {what}")


def _lost(evidence: Evidence) -> Iterator[str]:
    """Tensors of which fewer elements were read than there are."""
    for name, record in evidence.source.tensors.items():
        if evidence.statistics[name].elements < record.elements * record.format().components:
            yield name


def _uncovered(source: Source) -> Iterator[str]:
    if source.missing:
        return
    chunks: dict[str, list[Chunk]] = {name: [] for name in source.tensors}
    for item in source.objects:
        for chunk in item.chunks:
            chunks[chunk.tensor].append(chunk)
    for name, record in source.tensors.items():
        parts = [chunk for chunk in chunks[name] if math.prod(chunk.sizes)]
        covered = sum(math.prod(chunk.sizes) for chunk in parts)
        if covered != record.elements:
            yield f"{name}: its chunks hold {covered:,} elements, its shape has {record.elements:,}"
        elif len(parts) <= _PAIRWISE_CHUNKS and any(_overlap(a, b) for a, b in itertools.combinations(parts, 2)):
            yield f"{name}: two of its chunks overlap"


def _overlap(a: Chunk, b: Chunk) -> bool:
    return all(
        max(o1, o2) < min(o1 + s1, o2 + s2)
        for o1, s1, o2, s2 in zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True)
    )


def structure(evidence: Evidence) -> Check:
    """Count, names, shapes and types of the tensors are those of the configuration's model and its optimizer."""
    expected = evidence.expectation.tensors
    if expected is None:
        status: Status = "skipped" if evidence.foreign else "warning"
        return Check("structure", status, f"not compared: {evidence.expectation.reason}")
    source = evidence.source
    found = {weight: source.tensors[name] for name, weight in source.weights.items()}
    faults = [(name, "is missing") for name in expected if name not in found]
    faults += [(name, "is not in the model") for name in found if name not in expected]
    narrowed = []
    for name in expected.keys() & found.keys():
        wanted, record = expected[name], found[name]
        if wanted.shape != record.shape:
            faults.append((name, f"has shape {list(record.shape)}, the model's is {list(wanted.shape)}"))
        elif wanted.dtype != record.dtype:
            if evidence.foreign and {wanted.dtype, record.dtype} <= {"float32", "float16", "bfloat16", "float64"}:
                narrowed.append(name)
            else:
                faults.append((name, f"is {record.dtype}, the model's is {wanted.dtype}"))
    if not evidence.foreign:
        faults += _optimizer_faults(evidence)
    if faults:
        names = tuple(_stored_name(source, name) for name, _ in faults)
        return Check("structure", "failed", _sentences(f"{name} {fault}" for name, fault in faults), names)
    others = len(source.tensors) - len(found)
    detail = f"{len(found):,} tensors of the model and {others:,} others, as configured"
    if narrowed:
        detail += f"; {len(narrowed):,} weights are stored in another precision than the model's"
    return Check("structure", "passed", detail)


def _stored_name(source: Source, weight: str) -> str:
    return next((name for name, own in source.weights.items() if own == weight), weight)


def _optimizer_faults(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Each parameter has its two moments, of its own shape, and its step count."""
    tensors, expected = evidence.source.tensors, evidence.expectation.tensors or {}
    wanted: dict[str, tuple[int, ...]] = {}
    for parameter in evidence.expectation.parameters:
        for state in OPTIMIZER_STATES:
            wanted[f"{_OPTIMIZER}{state}.{parameter}"] = () if state == "step" else expected[parameter].shape
    for name, shape in wanted.items():
        if name not in tensors:
            yield name, "is missing"
        elif tensors[name].shape != shape:
            yield name, f"has shape {list(tensors[name].shape)}, its parameter needs {list(shape)}"
        elif tensors[name].dtype != "float32":
            yield name, f"is {tensors[name].dtype}, not float32"
    for name in tensors:
        if name not in wanted and name not in evidence.source.weights:
            yield name, "is neither the model's nor its optimizer's"


def finite(evidence: Evidence) -> Check:
    """No NaN, no infinity, in weights and optimizer state."""
    bad = {name: found for name, found in evidence.statistics.items() if found.nan or found.inf}
    if bad:
        detail = named(f"{name} ({found.nan:,} NaN, {found.inf:,} Inf)" for name, found in bad.items())
        return Check("finite", "failed", detail, tuple(bad))
    elements = sum(found.elements for found in evidence.statistics.values())
    return Check("finite", "passed", f"no NaN and no Inf in {elements:,} elements")


def magnitude(evidence: Evidence) -> Check:
    """No element beyond the limit, no variance beyond its square; the optimizer's step counts may grow."""
    bad = {name: f for name, f in evidence.statistics.items() if f.over_limit and not is_step_count(name)}
    limit = f"{evidence.magnitude_limit:g}"
    if bad:
        detail = named(f"{name} ({f.over_limit:,} beyond {limit}, up to {f.absmax:.3g})" for name, f in bad.items())
        return Check("magnitude", "failed", detail, tuple(bad))
    weights = ((name, f.absmax) for name, f in evidence.statistics.items() if not is_step_count(name))
    largest = max((math.sqrt(most) if is_second_moment(name) else most for name, most in weights), default=0.0)
    return Check("magnitude", "passed", f"no |x| > {limit}; the largest is {largest:.3g}")


def is_step_count(name: str) -> bool:
    """Whether a tensor is an optimizer's count of steps."""
    return name.startswith("optim") and (name.startswith(f"{_OPTIMIZER}step.") or name.endswith(".step"))


def dead(evidence: Evidence) -> Check:
    """No tensor is all zero but those that the architecture explains. Every other one is among the check's tensors."""
    zero = [name for name, found in evidence.statistics.items() if found.all_zero]
    weights = evidence.source.weights
    unexplained = tuple(name for name in zero if name in weights and weights[name] not in evidence.expectation.zero)
    idle = tuple(name for name in zero if name not in weights and not _may_be_idle(evidence, name))
    if unexplained:
        detail = f"all zero, which nothing explains: {named(unexplained)}"
        detail += f"; the optimizer never moved {named(idle)}" if idle else ""
        return Check("dead", "failed", detail, unexplained + idle)
    explained = [name for name in zero if name in weights]
    detail = f"no weight is all zero but {named(explained)}, as it must" if explained else "no weight is all zero"
    if idle:
        return Check("dead", "warning", f"{detail}; the optimizer never moved {named(idle)}", idle)
    return Check("dead", "passed", detail)


def _may_be_idle(evidence: Evidence, name: str) -> bool:
    """Zero optimizer state that is explained: before the first step, and where there is no gradient."""
    if evidence.foreign or not evidence.source.step:
        return True
    state, _, parameter = name.removeprefix(_OPTIMIZER).partition(".")
    return state in ("exp_avg", "exp_avg_sq") and parameter in evidence.expectation.still


def _sentences(faults: Iterable[str]) -> str:
    listed = list(faults)
    shown = 8
    more = len(listed) - shown
    return "; ".join(listed[:shown]) + (f"; and {more} more" if more > 0 else "")
