"""The promises, checked against what the witness saw, what lies in the store, the ledger, and `giblet verify`.

at most the steps since the last committed save are lost; none after SIGTERM
no checkpoint is accepted that differs by a bit from what was in memory
the last good checkpoint is never deleted
no loop without end
"""

from __future__ import annotations

from collections.abc import Iterator

import safetensors.torch
import torch

from drills.drill import BrokenPromiseError, Row
from drills.inside import digest
from drills.scene import Note, Scene
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.opened import read_manifest
from giblet.errors import GibletError
from giblet.verify import verify
from giblet.verify.ledger import read_ledger

Ref = tuple[int, str]


def judge(scene: Scene, row: Row) -> None:
    """Fill the row, and add to `row.broken` what was not kept."""
    starts = scene.witness.starts()
    row.starts = len({note["start"] for note in starts})
    if row.starts > scene.drill.starts:
        row.broken.append(f"{row.starts} starts, and {scene.drill.starts} should have been enough")
    if scene.struck is not None and scene.next_step is not None:
        row.seconds = scene.next_step - scene.struck
    row.goal_seconds = scene.drill.goal_seconds
    row.steps_lost = steps_lost(scene)
    if scene.drill.loses == "nothing" and row.steps_lost:
        row.broken.append(f"{row.steps_lost} steps were lost, and none should have been")
    row.broken += [*losses(scene), *differing_bits(scene), *deletions(scene)]
    if scene.witness.notes("commit"):
        _ledger(scene, row)
        _verdict(scene, row)


def _ledger(scene: Scene, row: Row) -> None:
    try:
        ledger = read_ledger(scene.storage, scene.run)
    except GibletError as error:
        row.broken.append(f"ledger: {error.message}")
        return
    row.repeated = sum(len(found) for again in ledger.repeated for found in again.samples.values())
    row.missed = sum(len(epoch.missed) for epoch in ledger.epochs)
    row.open_end = any(entry.open_end for entry in ledger.starts)
    if not ledger.proven:
        row.broken.append(f"the ledger proves nothing: {'; '.join(ledger.faults) or 'samples missed or used twice'}")


def _verdict(scene: Scene, row: Row) -> None:
    url = f"{scene.storage.url}/runs/{scene.run}"
    try:
        row.verdict = verify(url, storage=scene.storage).verdict
    except GibletError as error:
        row.verdict = f"none: {error.message}"
    if not row.verdict.startswith("SAFE"):
        row.broken.append(f"the newest checkpoint is {row.verdict}")


def steps_lost(scene: Scene) -> int:
    """Steps that were done and are in no weights: of each start those beyond where the next one went on from, and of
    the last one those beyond the newest commit.
    """
    starts, lost = scene.witness.starts(), 0
    kept = [went_on_from(scene, note) for note in starts[1:]]
    kept.append(max((note["step"] for note in scene.witness.notes("commit")), default=0))
    for start, step in zip(starts, kept, strict=False):
        done = max((note["step"] for note in _of(scene, start)), default=start["step"])
        lost += max(0, done - step)
    return lost


def went_on_from(scene: Scene, start: Note) -> int:
    """The step of the checkpoint that a start loaded in the end: the one it began with may have proved damaged."""
    loaded = [note["step"] for note in scene.witness.notes("load") if note["pid"] == start["pid"]]
    return int(loaded[-1] if loaded else start["step"])


def _of(scene: Scene, start: Note) -> list[Note]:
    """The steps of one start, by its process."""
    return [note for note in scene.witness.steps() if note["pid"] == start["pid"]]


def losses(scene: Scene) -> Iterator[str]:
    """Starts that went on from less than the newest good commit there was."""
    commits = [(note["at"], (note["step"], note["attempt"])) for note in scene.witness.notes("commit")]
    for start in scene.witness.starts():
        step = went_on_from(scene, start)
        there = [ref for at, ref in commits if at < start["at"] and ref not in scene.damaged]
        newest = max((at for at, _ in there), default=0)
        if step < newest:
            yield f"start {start['start']} went on from step {step}, though step {newest} was committed"


def differing_bits(scene: Scene) -> Iterator[str]:
    """Checkpoints that were loaded, or lie in the store as good, and are not what was in memory."""
    memory = {(note["start"], note["step"]): note["digest"] for note in scene.witness.notes("save") if not note["rank"]}
    for note in scene.witness.notes("load"):
        if note["digest"] != memory.get((_start_of(note["attempt"]), note["step"])):
            yield f"what was loaded of step {note['step']} ({note['attempt']}) is not what was in memory"
    for ref in scene.committed():
        try:
            bits = stored_digest(scene, ref)
        except GibletError as error:
            yield f"the checkpoint of step {ref.step} counts as good, and cannot be read: {error.message}"
            continue
        if bits != memory.get((_start_of(ref.attempt), ref.step)):
            yield f"what is stored of step {ref.step} ({ref.attempt}) is not what was in memory"


def stored_digest(scene: Scene, ref: CheckpointRef) -> str:
    """The digest of a checkpoint's tensors, read by the safetensors package: nothing of giblet's reader is in it."""
    manifest = read_manifest(scene.storage, ref.prefix)
    tensors: dict[str, torch.Tensor] = {}
    for item in manifest.objects:
        tensors |= safetensors.torch.load(scene.storage.get(ref.prefix + item.key))
    return digest(tensors)


def deletions(scene: Scene) -> Iterator[str]:
    """Manifests that were deleted while no newer good checkpoint was there."""
    there: set[Ref] = set()
    for _, method, key in scene.proxy.history:
        ref = CheckpointRef.of_manifest_key(key)
        if ref is None or ref.run != scene.run:
            continue
        name = (ref.step, ref.attempt)
        if method == "PUT":
            there.add(name)
            continue
        there.discard(name)
        if name not in scene.damaged and not any(other > name for other in there - scene.damaged):
            yield f"the checkpoint of step {ref.step} was deleted, and no newer good one was there"


def _start_of(attempt: str) -> int:
    return int(attempt.partition("-")[0])


def require(held: bool, told: str) -> None:
    """A drill's own condition."""
    if not held:
        raise BrokenPromiseError(told)
