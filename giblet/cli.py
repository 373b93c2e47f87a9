"""The command line: one subcommand a verb. Heavy imports happen inside a verb, so that `--help` is quick.

Results go to standard output (with `--json` for scripts), everything else to standard error. A `GibletError` ends
the process with its own exit code (giblet/errors.py) and one message.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import giblet
from giblet.errors import GibletError, OutOfSpaceError, StoppedError
from giblet.telemetry import logs

Verb: TypeAlias = Callable[[argparse.Namespace], int]
EPILOG = """\
exit codes: 0 done · 1 UNSAFE · 2 configuration · 65 data · 66 no such checkpoint · 69 something to install ·
74 disk full · 75 run name taken · 77 diverged · 78 storage said no · 129 storage away · 143 stopped and saved
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the process's exit code."""
    options = _parser().parse_args(arguments)
    logs.configure(getattr(options, "log_format", None) or "logfmt", level="DEBUG" if options.debug else "INFO")
    verb: Verb = options.verb
    try:
        return verb(options)
    except GibletError as error:
        if options.debug:
            raise
        print(f"giblet: error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("giblet: stopped; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return StoppedError.exit_code
    except OSError as error:
        if options.debug or error.errno != 28:
            raise
        print(f"giblet: error: {error}\n  remedy: free some space; what was whole is still whole", file=sys.stderr)  # noqa: T201
        return OutOfSpaceError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="giblet", description=giblet.__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"giblet {giblet.__version__}")
    parser.add_argument("--debug", action="store_true", help="log more, and show tracebacks")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_config(verbs)
    return parser


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _config_arguments(parser: argparse.ArgumentParser) -> None:
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


def _add_config(verbs: Verbs) -> None:
    parser = verbs.add_parser("config", help="check, show, or describe a configuration")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="say everything that is wrong with a file, all at once")
    show = actions.add_parser("show", help="print the configuration that a run would use, defaults filled in")
    for action in (check, show):
        action.add_argument("file", type=Path, help="values file or bare configuration")
        action.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override"
        )
    check.set_defaults(verb=_config_check)
    show.add_argument("--json", action="store_true", help="as JSON instead of YAML")
    show.set_defaults(verb=_config_show)
    schema = actions.add_parser("schema", help="print the JSON Schema of a values file, or the reference page")
    schema.add_argument("--reference", action="store_true", help="print configs/README.md instead")
    schema.set_defaults(verb=_config_schema)


def _config_check(options: argparse.Namespace) -> int:
    from giblet.config.check import check_file

    config, notes = check_file(options.file, options.overrides)
    for note in notes:
        _say(f"note: {note}")
    _say(f"{options.file}: good (run {config.run.name})")
    return 0


def _config_show(options: argparse.Namespace) -> int:
    import json

    import yaml

    from giblet.config import load_config

    tree = load_config(options.file, options.overrides).model_dump(mode="json")
    _say(json.dumps(tree, indent=2) if options.json else yaml.safe_dump(tree, sort_keys=False).rstrip())
    return 0


def _config_schema(options: argparse.Namespace) -> int:
    from giblet.config.generate import reference_text, values_schema_text

    _say((reference_text() if options.reference else values_schema_text()).rstrip())
    return 0


def _say(text: str) -> None:
    print(text)  # noqa: T201
