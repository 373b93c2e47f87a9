"""Legacy `.pt` files, both ways: a run's checkpoint as one, and one as the beginning of a run.

Such a file is a torch zip of `epoch`, `global_step`, `model_state_dict`, `optimizer_state_dict`,
`scheduler_state_dict`, `best_val_loss`, `config`, `train_history` and `val_history`. It holds tensors and plain values
only, so `torch.load(..., weights_only=True)` opens it. What needs more than that to be read is refused, unread.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from giblet.checkpoint import CheckpointStore
from giblet.checkpoint.export import Exported, export_safetensors, map_tensors
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.opened import OpenCheckpoint
from giblet.checkpoint.survey import survey
from giblet.config.load import load_config_data
from giblet.config.schema import GibletConfig
from giblet.data.hrf import hrf_kernel
from giblet.data.prepared import PreparedDataset, file_sha256
from giblet.errors import CheckpointError, RunConflictError
from giblet.models import Dimensions, build_model
from giblet.storage import Storage, open_storage
from giblet.telemetry.metrics import Metrics
from giblet.training.checkpointing import training_tensors
from giblet.training.heartbeat import Heartbeat
from giblet.training.loop import Trainer
from giblet.training.optimizer import STATES, decays
from giblet.training.parallel import World
from giblet.training.signals import StopFlag

_ZIP = b"PK\x03\x04"
_MODEL, _OPTIMIZER = "model.", "optimizer."


def export_legacy(checkpoint: OpenCheckpoint, path: Path) -> Exported:
    """Write a checkpoint as a legacy `.pt`, optimizer and history included.

    Needs room for two copies on disk, not in memory. Raises `CheckpointError` if it is no checkpoint of training.
    """
    state = checkpoint.manifest.state
    if not isinstance(state, dict) or "config" not in state or "schedule" not in state:
        raise CheckpointError(
            f"{checkpoint.url}: holds no state of training, which a legacy file tells of",
            remedy="export it without --format legacy",
        )
    whole, part = path.with_name(f"{path.name}.whole"), path.with_name(f"{path.name}.part")
    try:
        written = export_safetensors(checkpoint, whole, everything=True)
        tree = legacy_tree(map_tensors(whole), state, _structure(state))
        torch.save(tree, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        whole.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return Exported(path, written.tensors, written.elements, path.stat().st_size)


def legacy_tree(tensors: Mapping[str, Tensor], state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """What a legacy file holds, of flat `tensors` and the `state` beside them; `model` gives order and groups."""
    best = state.get("best")
    return {
        "epoch": state["epoch"],
        "global_step": state["step"],
        "model_state_dict": OrderedDict((name, tensors[_MODEL + name]) for name in model.state_dict()),
        "optimizer_state_dict": _optimizer_state(tensors, state, model),
        "scheduler_state_dict": {
            "last_epoch": state["step"],
            "_step_count": state["step"] + 1,
            "_last_lr": [state["schedule"]["learning_rate"]],
        },
        "best_val_loss": float("inf") if best is None else best["score"],
        "config": state["config"],
        "train_history": state.get("history", {}).get("train", {}),
        "val_history": state.get("history", {}).get("validation", {}),
    }


def _optimizer_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """As `AdamW.state_dict()` would have it: decayed parameters first, then the others, each group with its names."""
    settings = state["config"]["training"]
    parameters = dict(model.named_parameters())
    groups, entries, number = [], {}, 0
    for decayed in (True, False):
        names = [name for name, parameter in parameters.items() if decays(name, parameter) == decayed]
        for offset, name in enumerate(names):
            entries[number + offset] = {kind: tensors[f"{_OPTIMIZER}{kind}.{name}"] for kind in STATES}
        groups.append(
            {
                "lr": state["schedule"]["learning_rate"],
                "betas": (settings["beta1"], settings["beta2"]),
                "eps": 1e-8,
                "weight_decay": settings["weight_decay"] if decayed else 0.0,
                "params": list(range(number, number + len(names))),
                "param_names": names,
            }
        )
        number += len(names)
    return {"state": entries, "param_groups": groups}


def _structure(state: Mapping[str, Any]) -> nn.Module:
    """The model that a checkpoint is of, without its weights."""
    config = load_config_data(state["config"], source="the checkpoint's configuration")
    dataset = state["dataset"]
    prepared = dataset["dimensions"]
    dimensions = Dimensions(
        **{name: prepared[name] for name in ("video_frames", "audio_codebooks", "audio_frames")},
        video_height=prepared["height"], video_width=prepared["width"],
        text_dimension=prepared["text_dimension"], voxels=prepared["voxels"],
    )  # fmt: skip
    kernel = hrf_kernel(config, dataset["tr_seconds"])
    with torch.device("meta"):
        return build_model(config, dimensions, hrf_kernel=kernel)


def read_legacy(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A legacy file's weights by name, mapped, and what it says of itself.

    Raises `CheckpointError` if it is no torch zip file of tensors and plain values; nothing in it is ever run.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", remedy="check the path") from None
    if begin != _ZIP:
        raise CheckpointError(
            f"{path}: no torch zip file. A bare pickle could run any program when it is read, and is refused",
            remedy="load it where you trust it, and save it again with torch.save of torch 1.6 or later",
        )
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        first = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: cannot be read as tensors and plain values alone: {first[0] if first else error!r}",
            remedy="save it again with nothing but tensors, numbers, strings, lists and dictionaries in it",
        ) from None
    weights = tree.get("model_state_dict", tree) if isinstance(tree, dict) else tree
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"{path}: has no model_state_dict of tensors", remedy="name a legacy checkpoint")
    if all(name.startswith("module.") for name in weights):  # DistributedDataParallel's prefix
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    told = {key: tree[key] for key in ("epoch", "global_step", "best_val_loss") if _is_number(tree.get(key))}
    return weights, told


def import_legacy(path: Path, config: GibletConfig, dataset: PreparedDataset) -> CheckpointRef:
    """Begin the run `config.run.name` with a legacy file's weights: a checkpoint of step 0, from which training starts.

    Weights and running statistics are taken; optimizer, schedule, epoch and history begin anew, since they belong to
    other software. On the CPU, with weights and optimizer state in memory. Raises `CheckpointError` if the file's
    tensors are not those of the configuration's model, and `RunConflictError` if the run has checkpoints already.
    """
    weights, told = read_legacy(path)
    here = config.training.model_copy(update={"device": "cpu", "processes": 1})
    metrics = Metrics(config.run.name)
    world = World(0, 1, 0, torch.device("cpu"))
    trainer = Trainer(config.model_copy(update={"training": here}), dataset, world, metrics, StopFlag(), Heartbeat())
    copy_weights(weights, trainer.parallel.module, str(path))
    storage = open_storage(config.checkpoint.url, config.checkpoint)
    store = CheckpointStore(storage, config.run.name, config.checkpoint, metrics)
    try:
        if _has_checkpoints(storage, config.run.name):
            raise RunConflictError(
                f"{storage.url}: run {config.run.name} has checkpoints already",
                remedy="import under another name: --set run.name=NAME",
            )
        store.begin(config)
        imported = {"file": path.name, "sha256": file_sha256(path), **told}
        state = {**trainer.checkpoint_state(), "config": config.model_dump(mode="json"), "imported": imported}
        ref = store.save(0, training_tensors(trainer.parallel.module, trainer.optimizer), state, wait=True)
        store.end("imported", 0, 0, f"weights of {path.name}")
    finally:
        store.close()
    return ref


@torch.no_grad()
def copy_weights(weights: Mapping[str, Tensor], model: nn.Module, where: str) -> None:
    """Fill a model, casting to its types. Raises `CheckpointError` naming what does not fit, or is not finite."""
    wanted = model.state_dict()
    faults = [f"it has no {name}" for name in wanted if name not in weights]
    faults += [f"the model has no {name}" for name in weights if name not in wanted]
    for name in wanted.keys() & weights.keys():
        if weights[name].shape != wanted[name].shape:
            faults.append(f"{name} is {list(weights[name].shape)} there and {list(wanted[name].shape)} here")
        elif not weights[name].isfinite().all():
            faults.append(f"{name} has NaN or Inf")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"{where} does not fit the configuration's model: {'; '.join(sorted(faults)[:5])}{more}",
            remedy="set config.model, data.hrf and the dataset to those it was trained with",
        )
    for name, tensor in wanted.items():
        tensor.copy_(weights[name])


def _has_checkpoints(storage: Storage, run: str) -> bool:
    return any(entry.committed for entry in survey(storage, run))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
