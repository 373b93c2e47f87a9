"""What the verbs share: their types, the arguments of a configuration, and how a result is printed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and `--set KEY=VALUE`."""
    parser.add_argument(
        "--config",
        "-c",
        type=Path,
        metavar="FILE",
        help="values file (its `config:` key is read) or bare configuration",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override one key, for instance --set training.epochs=3 (may be repeated)",
    )  # fmt: skip


def print_result(options: argparse.Namespace, row: Mapping[str, Any], text: str) -> None:
    """Print the row as JSON if `--json` was given, else the text."""
    import json

    say(json.dumps(row, indent=2, default=str) if options.json else text)


def say(text: str) -> None:
    """One line on standard output."""
    print(text)  # noqa: T201
