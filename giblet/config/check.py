"""What a schema cannot say: rules that relate the configuration to the machines it will run on.

`giblet config check` says them; training says them again before it touches a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from giblet.config.load import apply_override, copy_tree, load_config_data, read_tree, validate_tree
from giblet.config.schema import AUDIO_FRAMES_PER_SECOND, GibletConfig
from giblet.config.values import Values
from giblet.errors import ConfigError


def world_size_faults(config: GibletConfig, world_size: int) -> list[str]:
    """Why so many ranks cannot share the global batch; empty if they can."""
    training, micro_batches = config.training, _micro_batches(config)
    if world_size <= micro_batches:
        return []
    return [
        f"training.global_batch_samples {training.global_batch_samples} in micro-batches of "
        f"{training.micro_batch_samples} makes {micro_batches} micro-batches a step, and {world_size} ranks want one "
        "each; raise training.global_batch_samples, lower training.micro_batch_samples, or use fewer ranks"
    ]


def idle_share(config: GibletConfig, world_size: int) -> float:
    """The share of a step's passes in which a rank has nothing to do: 0 where the micro-batches share out evenly."""
    micro_batches = _micro_batches(config)
    passes = -(-micro_batches // world_size) * world_size
    return 1 - micro_batches / passes


def _micro_batches(config: GibletConfig) -> int:
    return config.training.global_batch_samples // config.training.micro_batch_samples


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
    """Check a values file or bare configuration whole; returns it with its notes. See `check_files`."""
    return check_files([path], overrides)


def check_files(paths: Sequence[str | Path], overrides: Iterable[str] = ()) -> tuple[GibletConfig, list[str]]:
    """Check a values file with overlays over it, in Helm's order: a later one wins, and its null takes a key away.

    Raises `ConfigError` with all faults of both readers (Helm's keys and the trainer's) at once.
    """
    tree: dict[str, Any] = {}
    for path in paths:
        tree = overlaid(tree, read_tree(Path(path)))
    source = " + ".join(map(str, paths))
    if not _is_values(tree):
        config = load_config_data(tree, overrides, source=source)
        processes = config.training.processes
        remarks = [*notes(config), *uneven_notes(config, {f"{processes} processes": processes})]
        return _judged(config, world_size_faults(config, processes), remarks, source)
    values = _load_values(tree, overrides, source)
    config, workers = values.config, values.workers
    faults = world_size_faults(config, workers.max * workers.processes)
    sizes = {f"{count} workers": count * workers.processes for count in range(workers.min, workers.max + 1)}
    return _judged(config, faults, [*notes(config), *(uneven_notes(config, sizes) if not faults else [])], source)


def uneven_notes(config: GibletConfig, world_sizes: Mapping[str, int]) -> list[str]:
    """World sizes, by what they come from, at which ranks stand idle for part of each step."""
    shares = {source: idle_share(config, size) for source, size in world_sizes.items()}
    told = [f"{source} ({share:.0%})" for source, share in shares.items() if share > 0]
    if not told:
        return []
    return [
        f"the {_micro_batches(config)} micro-batches of a step do not share out evenly over {', '.join(told)}: so much "
        "of the GPUs' time is spent on passes that do not count; another training.global_batch_samples may suit better"
    ]


def overlaid(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overlay` over it, as Helm merges values: mappings by key, all else replaced, null taken away."""
    merged = copy_tree(base)
    for key, value in overlay.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = overlaid(below, value)
        elif value is None and key in merged:
            del merged[key]
        else:
            merged[key] = value
    return merged


def _is_values(tree: Mapping[str, Any]) -> bool:
    ours = {field.alias or name for name, field in Values.model_fields.items()} - set(GibletConfig.model_fields)
    return bool(ours & set(tree))


def _judged(config: GibletConfig, faults: list[str], remarks: list[str], source: str) -> tuple[GibletConfig, list[str]]:
    if faults:
        raise ConfigError(
            f"{source}: the configuration does not fit its machines\n" + "\n".join(f"  - {f}" for f in faults)
        )
    return config, remarks


def _load_values(tree: dict[str, Any], overrides: Iterable[str], source: str) -> Values:
    tree = copy_tree(tree)
    tree["config"] = tree.get("config") or {}
    for override in overrides:
        apply_override(tree["config"], override)
    return validate_tree(Values, tree, source)
