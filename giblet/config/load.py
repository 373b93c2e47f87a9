"""Reading a configuration: a file, then `--set` overrides, then every fault at once.

A file is a Helm values file whose `config:` key is ours, or the bare configuration.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from giblet.config.schema import GibletConfig
from giblet.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> GibletConfig:
    """Read `path` (the defaults if None), apply `key.path=value` overrides, validate.

    Raises `ConfigError` with every fault: key, value, what is allowed.
    """
    source = "the defaults" if path is None else str(path)
    data = {} if path is None else _read_config(Path(path))
    return load_config_data(data, overrides, source=source)


def load_config_data(data: Mapping[str, Any], overrides: Iterable[str] = (), *, source: str = "data") -> GibletConfig:
    """Validate a configuration that is already in memory; like `load_config`."""
    tree = copy_tree(data)
    for override in overrides:
        apply_override(tree, override)
    return validate_tree(GibletConfig, tree, source)


def validate_tree(model: type[ModelT], tree: dict[str, Any], source: str) -> ModelT:
    """Validate, or raise `ConfigError` with the faults of single keys and of their combinations together."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    # Rules that relate keys run only once every key is good: try them with the bad keys at their defaults.
    without = copy_tree(tree)
    for fault in faults:
        _remove(without, fault["loc"])
    try:
        model.model_validate(without)
    except ValidationError as error:
        faults += [fault for fault in error.errors(include_url=False) if fault not in faults]
    raise ConfigError(describe_faults(faults, source, model)) from None


def _remove(tree: dict[str, Any], location: tuple[str | int, ...]) -> None:
    node: Any = tree
    for part in location[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and location:
        node.pop(location[-1], None)


def read_tree(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, unvalidated."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", remedy="name a values file such as configs/smoke.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, not a mapping of settings")
    return tree or {}


def _read_config(path: Path) -> dict[str, Any]:
    tree = read_tree(path)
    inner = tree.get("config", tree)
    if not isinstance(inner, dict | None):
        raise ConfigError(f"{path}: `config:` holds a {type(inner).__name__}, not a mapping of settings")
    return inner or {}


def copy_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings that can be changed."""
    return {key: copy_tree(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b.c=value` in place; the value is YAML, as in Helm's `--set`."""
    key, equals, text = override.partition("=")
    parts = key.strip().removeprefix("config.").split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"--set {override}: not of the form key.path=value", remedy="for instance --set training.epochs=3"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
    node = tree
    for depth, part in enumerate(parts[:-1]):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parts[: depth + 1])} is a value, not a section")
        node = child
    node[parts[-1]] = value


def describe_faults(faults: Iterable[ErrorDetails], source: str, model: type[BaseModel]) -> str:
    """Every fault of a validation, one line each: key, value given, what is allowed."""
    lines = [_describe(fault, model) for fault in faults]
    count = len(lines)
    return f"{source}: {count} fault{'s' if count > 1 else ''} in the configuration\n" + "\n".join(
        f"  - {line}" for line in lines
    )


def _describe(fault: ErrorDetails, model: type[BaseModel]) -> str:
    location = fault["loc"]
    key = ".".join(str(part) for part in location) or "(combination)"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], model)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{key}: unknown key; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{key}: {message}"
    allowed = _allowed(location, model)
    return f"{key}: {fault['input']!r} is not allowed; {message[0].lower()}{message[1:]}" + (
        f" ({allowed})" if allowed else ""
    )


def _section_at(location: Iterable[str | int], model: type[BaseModel]) -> type[BaseModel] | None:
    section = model
    for part in location:
        field = section.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    return section


def _known_keys(location: Iterable[str | int], model: type[BaseModel]) -> list[str]:
    section = _section_at(location, model)
    return [field.alias or name for name, field in section.model_fields.items()] if section else []


def _allowed(location: tuple[str | int, ...], model: type[BaseModel]) -> str:
    section = _section_at(location[:-1], model)
    field = section.model_fields.get(str(location[-1])) if section and location else None
    return field.description if field and field.description else ""


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The `a.b.c` keys of a nested mapping with their values."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
