"""From a run's folder to what `evaluate` needs: the model with its weights, and the facts of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from giblet.checkpoint import CheckpointRef, CheckpointStore
from giblet.checkpoint import layout as keys
from giblet.checkpoint.records import read_record
from giblet.checkpoint.resume import best_ref
from giblet.checkpoint.survey import survey
from giblet.config.schema import GibletConfig
from giblet.data.hrf import hrf_kernel
from giblet.data.prepared import PreparedDataset
from giblet.errors import CheckpointError
from giblet.evaluate.results import RunFacts
from giblet.models import Dimensions, MultimodalAutoencoder, build_model
from giblet.storage import Storage


def choose_checkpoint(storage: Storage, run: str, step: int | None = None) -> CheckpointRef:
    """The checkpoint of `step`; None: the run's best by validation where it is known, else its newest."""
    if step is not None:
        refs = [entry.ref for entry in survey(storage, run) if entry.committed and not entry.quarantined]
        if chosen := [ref for ref in refs if ref.step == step]:
            return max(chosen)
        raise CheckpointError(
            f"{storage.url}: run {run} has no checkpoint of step {step}",
            remedy=f"it has those of steps {', '.join(str(ref.step) for ref in refs) or '(none)'}",
        )
    store = CheckpointStore(storage, run)
    ref = best_ref(storage, run)
    if ref is None or storage.head(ref.manifest_key) is None:
        ref = store.latest()
    if ref is None:
        raise CheckpointError(
            f"{storage.url}: run {run} has no checkpoint",
            remedy="train it first, or name another run with --set run.name=NAME",
        )
    return ref


def load_model(
    config: GibletConfig, dataset: PreparedDataset, storage: Storage, ref: CheckpointRef
) -> tuple[MultimodalAutoencoder, Mapping[str, Any]]:
    """The configuration's model with a checkpoint's weights, on the CPU, and the state saved with it."""
    kernel = hrf_kernel(config, dataset.manifest.tr_seconds)
    model = build_model(config, Dimensions.of(dataset.manifest.dimensions), hrf_kernel=kernel)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = CheckpointStore(storage, ref.run, config.checkpoint).load(ref, tensors)
    return model, state


def run_facts(storage: Storage, ref: CheckpointRef, state: Mapping[str, Any]) -> RunFacts:
    """What the run left in storage about itself: its starts and how they ended, and the verdict on `ref`."""
    report = read_record(storage, ref.report_key) or {}
    failed = [check["name"] for check in report.get("checks", []) if check["ok"] is False]
    return RunFacts(
        run=ref.run,
        step=ref.step,
        epoch=state.get("epoch"),
        checkpoint=f"{storage.url}/{ref.prefix}",
        verdict=report.get("verdict"),
        verdict_detail=_detail(report, failed),
        statements=tuple(_starts(storage, ref.run)),
        history=state.get("history", {}),
    )


def _detail(report: Mapping[str, Any], failed: list[str]) -> str | None:
    if not report:
        return None
    read = f"{report['tensors']} tensors, {report['elements']:,} elements, {report['bytes'] / 1e6:.0f} MB read back"
    return f"{read}; failed: {', '.join(failed)}" if failed else f"{read}; every check passed or had nothing to judge"


def _starts(storage: Storage, run: str) -> list[str]:
    """A sentence a start: processes, where it went on from, how it ended."""
    numbers = sorted(
        number for info in storage.list(keys.starts_prefix(run)) if (number := keys.start_number(info.key)) is not None
    )
    sentences = []
    for number in numbers:
        start = read_record(storage, keys.start_key(run, number)) or {}
        end = read_record(storage, keys.end_key(run, number))
        resumed = start.get("resumed_from")
        began = f"resumed from the checkpoint of step {resumed['step']}" if resumed else "began from nothing"
        silent = "ended without a word (killed)" if number < numbers[-1] else "has left no word of its end"
        how = f"{end['cause']} at step {end['step']}" if end else silent
        ranks = start.get("world_size", "?")
        sentences.append(f"Start {number} on {ranks} process{'es' * (ranks != 1)} {began}; {how}.")
    return sentences


__all__ = ["choose_checkpoint", "load_model", "run_facts"]
