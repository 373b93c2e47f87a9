"""What a schema cannot say: rules that relate the configuration to the machines it will run on.

`giblet config check` says them; training says them again before it touches a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from giblet.config.load import apply_override, copy_tree, load_config, read_tree, validate_tree
from giblet.config.schema import AUDIO_FRAMES_PER_SECOND, GibletConfig
from giblet.config.values import Values
from giblet.errors import ConfigError


def world_size_faults(config: GibletConfig, world_size: int) -> list[str]:
    """Why this many ranks cannot share the global batch evenly; empty if they can."""
    training = config.training
    micro_batches = training.global_batch_samples // training.micro_batch_samples
    if micro_batches % world_size == 0:
        return []
    fitting = [size for size in range(1, micro_batches + 1) if micro_batches % size == 0]
    return [
        f"training.global_batch_samples {training.global_batch_samples} in micro-batches of "
        f"{training.micro_batch_samples} makes {micro_batches} micro-batches, which {world_size} ranks cannot share "
        f"evenly; world sizes that can: {', '.join(map(str, fitting))}"
    ]


def notes(config: GibletConfig) -> list[str]:
    """What a person should know of a configuration that is allowed."""
    found = []
    model, audio = config.model, config.data.audio
    if model.audio_codebooks is not None and model.audio_codebooks != audio.codebooks:
        found.append(
            f"model.audio_codebooks is {model.audio_codebooks}, but {audio.bandwidth_kbps:g} kbps has "
            f"{audio.codebooks} codebooks: training will refuse data prepared with it"
        )
    if model.audio_frames is not None:
        found.append(
            f"model.audio_frames {model.audio_frames}: a TR with more codec frames ({AUDIO_FRAMES_PER_SECOND} a "
            "second) loses its last ones; every TR still starts at its own time"
        )
    if audio.weights == "random":
        found.append("data.audio.weights is random: codes carry no learned sound; for tests only")
    return found


def check_file(path: str | Path, overrides: Iterable[str] = ()) -> tuple[GibletConfig, list[str]]:
    """Check a values file or bare configuration whole; returns it with its notes.

    Raises `ConfigError` with all faults of both readers (Helm's keys and the trainer's) at once.
    """
    tree = read_tree(Path(path))
    if "config" not in tree:
        config = load_config(path, overrides)
        faults = world_size_faults(config, config.training.processes)
    else:
        values = _load_values(tree, overrides, str(path))
        config = values.config
        faults = [
            fault
            for workers in sorted({values.workers.min, values.workers.replicas, values.workers.max})
            for fault in world_size_faults(config, workers * values.workers.processes)
        ]
    if faults:
        raise ConfigError(
            f"{path}: the configuration does not fit its machines\n" + "\n".join(f"  - {f}" for f in faults)
        )
    return config, notes(config)


def _load_values(tree: dict[str, Any], overrides: Iterable[str], source: str) -> Values:
    tree = copy_tree(tree)
    tree["config"] = tree["config"] or {}
    for override in overrides:
        apply_override(tree["config"], override)
    return validate_tree(Values, tree, source)
