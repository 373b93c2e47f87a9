"""`giblet config check|show|schema`."""

from __future__ import annotations

import argparse
from pathlib import Path

from giblet.commands.common import Verbs, say


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    _add_config(verbs)


def _add_config(verbs: Verbs) -> None:
    parser = verbs.add_parser("config", help="check, show, or describe a configuration")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="say everything that is wrong with a file, all at once")
    show = actions.add_parser("show", help="print the configuration that a run would use, defaults filled in")
    check.add_argument("files", type=Path, nargs="+", metavar="FILE", help="values file, and overlays as for helm -f")
    show.add_argument("file", type=Path, help="values file or bare configuration")
    for action in (check, show):
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
    from giblet.config.check import check_files

    config, notes = check_files(options.files, options.overrides)
    for note in notes:
        say(f"note: {note}")
    say(f"{' + '.join(map(str, options.files))}: good (run {config.run.name})")
    return 0


def _config_show(options: argparse.Namespace) -> int:
    import json

    import yaml

    from giblet.config import load_config

    tree = load_config(options.file, options.overrides).model_dump(mode="json")
    say(json.dumps(tree, indent=2) if options.json else yaml.safe_dump(tree, sort_keys=False).rstrip())
    return 0


def _config_schema(options: argparse.Namespace) -> int:
    from giblet.config.generate import reference_text, values_schema_text

    say((reference_text() if options.reference else values_schema_text()).rstrip())
    return 0
