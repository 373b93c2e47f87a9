"""What the verbs share: their types, the arguments of a configuration, and how a result is printed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from giblet.config import GibletConfig

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and `--set KEY=VALUE`."""
    parser.add_argument(
        "--config",
        "-c",
        type=Path,
        metavar="FILE",
        help="values file (its `config:` key is read) or bare configuration (default: GIBLET_CONFIG)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override one key, for instance --set training.epochs=3 (may be repeated)",
    )  # fmt: skip


def config_path(options: argparse.Namespace) -> Path | None:
    """`--config`, else GIBLET_CONFIG, which a pod of the chart has; None where neither names a file."""
    named = options.config or os.environ.get("GIBLET_CONFIG")
    return Path(named) if named else None


def config_of(options: argparse.Namespace, more: Sequence[str] = ()) -> GibletConfig:
    """The configuration that a verb was given; `more` are overrides of its own. Raises `ConfigError`."""
    from giblet.config import load_config

    return load_config(config_path(options), [*options.overrides, *more])


def print_result(options: argparse.Namespace, row: Mapping[str, Any], text: str) -> None:
    """Print the row as JSON if `--json` was given, else the text."""
    import json

    say(json.dumps(row, indent=2, default=str) if options.json else text)


def say(text: str) -> None:
    """One line on standard output."""
    print(text)  # noqa: T201
