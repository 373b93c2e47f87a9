"""Whether a checkpoint agrees with itself: step, epoch, samples, optimizer, history."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from giblet.config.schema import GibletConfig, TrainingConfig
from giblet.verify.checks import Evidence, is_step_count
from giblet.verify.opening import checkpoint_ref
from giblet.verify.report import Check, named


def consistent(evidence: Evidence) -> Check:
    """Step, epoch, samples, best, history and the optimizer's step counts do not contradict each other."""
    if evidence.foreign:
        return _foreign(evidence)
    state, step = evidence.source.state, evidence.source.step or 0
    faults = [*_progress(evidence, state, step), *_schedule(evidence.config, state, step), *_memory(state, step)]
    wrong = tuple(_wrong_counts(evidence, step))
    if wrong:
        faults.append(f"the optimizer has not done {step:,} steps in {named(wrong)}")
    if faults:
        return Check("consistent", "failed", "; ".join(faults), wrong)
    return Check(
        "consistent", "passed", f"step {step:,}, {state.get('samples_consumed', 0):,} samples, optimizer agree"
    )


def _progress(evidence: Evidence, state: Mapping[str, Any], step: int) -> Iterator[str]:
    missing = [name for name in ("step", "epoch", "samples_consumed") if type(state.get(name)) is not int]
    if missing:
        yield f"the training state lacks {', '.join(missing)}"
        return
    if state["step"] != step:
        yield f"the manifest is of step {step:,}, the training state in it of step {state['step']:,}"
    place, manifest = checkpoint_ref(evidence.source), evidence.source.manifest
    if place is not None and (place.run, place.step, place.attempt) != (manifest.run, step, manifest.attempt):
        yield f"it lies in {place.prefix}, its manifest is of run {manifest.run}, step {step:,}, {manifest.attempt}"
    if evidence.config is not None:
        batch = evidence.config.training.global_batch_samples
        if state["samples_consumed"] != state["step"] * batch:
            yield (
                f"{state['samples_consumed']:,} samples consumed, but {state['step']:,} steps of {batch} samples "
                f"are {state['step'] * batch:,}"
            )
    if evidence.steps_per_epoch and state["epoch"] != state["step"] // evidence.steps_per_epoch:
        yield f"epoch {state['epoch']:,} after {state['step']:,} steps of {evidence.steps_per_epoch:,} an epoch"


def _schedule(config: GibletConfig | None, state: Mapping[str, Any], step: int) -> Iterator[str]:
    """The rate that it recorded is that of the schedule at its last step, and the steps are not beyond its end."""
    schedule = state.get("schedule")
    if not isinstance(schedule, Mapping) or config is None:
        return
    total, rate = schedule.get("total_steps"), schedule.get("learning_rate")
    if not isinstance(total, int) or not isinstance(rate, (int, float)):
        yield "its schedule lacks total_steps or learning_rate"
        return
    expected = scheduled_rate(max(step - 1, 0), total, config.training)
    if not math.isclose(rate, expected, rel_tol=1e-9):
        yield f"its learning rate {rate:.6g} is not that of the schedule at step {step:,}, {expected:.6g}"
    if step > total:
        yield f"step {step:,} lies beyond the end of its schedule, step {total:,}"


def scheduled_rate(step: int, total_steps: int, settings: TrainingConfig) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then half a cosine (arXiv:1608.03983).

    Written down a second time on purpose: the judge does not take the schedule from what it judges.
    """
    warmup, low = settings.warmup_steps, settings.minimum_learning_rate
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(total_steps - warmup, 1))
    return low + (settings.learning_rate - low) * (1.0 + math.cos(math.pi * done)) / 2.0


def _memory(state: Mapping[str, Any], step: int) -> Iterator[str]:
    """What it remembers lies in its past, and the best score is one that was seen."""
    best, validation, history = state.get("best"), state.get("validation"), state.get("history")
    for name, memory in (("best", best), ("newest", validation)):
        if isinstance(memory, Mapping) and float(memory.get("step", 0)) > step:
            yield f"its {name} validation is of step {memory['step']:g}, after step {step:,}"
    curves = history.get("validation") if isinstance(history, Mapping) else None
    if not isinstance(curves, Mapping):
        return
    if len({len(curve) for curve in curves.values()}) > 1:
        yield "the curves of its validation history differ in length"
    losses = curves.get("loss", [])
    if isinstance(best, Mapping) and best.get("score") not in losses:
        yield f"its best score {best.get('score')} is none of those in its history"
    if isinstance(best, Mapping) and any(math.isfinite(x) and x < 0 for x in losses):
        yield "its validation history has a negative loss"


def _wrong_counts(evidence: Evidence, step: int) -> Iterator[str]:
    for name, found in evidence.statistics.items():
        if is_step_count(name) and found.elements and (found.mean != step or found.absmax != step):
            yield name


def _foreign(evidence: Evidence) -> Check:
    """Another program's file: its optimizer's step counts should be one number."""
    counts = {found.absmax for name, found in evidence.statistics.items() if is_step_count(name)}
    if len(counts) > 1:
        low, high = min(counts), max(counts)
        return Check("consistent", "warning", f"the optimizer's step counts reach from {low:g} to {high:g}")
    state = evidence.source.state
    if bad := state.get("not_finite"):
        return Check("consistent", "warning", f"not finite, among what it says of its training: {named(bad)}")
    facts = (
        ("epoch", state.get("epoch")),
        ("step", evidence.source.step),
        ("best validation loss", state.get("best_val_loss")),
    )
    said = [f"{name} {value}" for name, value in facts if value is not None]
    if counts:
        said.append(f"{max(counts):g} optimizer steps")
    if said:
        parts = {name: state.get(f"has_{name}") for name in ("optimizer", "schedule", "history")}
        said += [f"{'with' if there else 'without'} {name}" for name, there in parts.items() if there is not None]
    if not said:
        return Check("consistent", "skipped", "it says nothing of its progress")
    return Check("consistent", "passed", ", ".join(said))
