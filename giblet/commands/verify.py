"""`giblet verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from giblet.commands.common import Verbs, config_arguments, config_of, config_path, say

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from giblet.config import GibletConfig
    from giblet.verify.report import Report
    from giblet.verify.signing import Signer
    from giblet.verify.sources import Source


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    _add_verify(verbs)


def _add_verify(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "verify",
        help="read a checkpoint back, every byte, and judge it",
        description="Judges a run's newest checkpoint, or one checkpoint, safetensors file, DCP folder or legacy .pt. "
        "With --config, or --set of what makes a model or its training, it also has to be what that makes. "
        "Exit 0: SAFE, or SAFE WITH WARNINGS; 1: UNSAFE; anything else: it could not be judged.",
    )
    parser.add_argument(
        "url", metavar="URL", nargs="?", help="s3://bucket/prefix/runs/NAME[/checkpoints/…], a folder or a file"
    )
    parser.add_argument(
        "--diff", nargs=2, metavar=("A", "B"), help="instead: what changed from one checkpoint to another, by tensor"
    )
    config_arguments(parser)
    parser.add_argument(
        "--restore", action=argparse.BooleanOptionalAction,
        help="also load it into the model and score it (default: verify.restore where --config is given)",
    )  # fmt: skip
    parser.add_argument(
        "--html", type=Path, metavar="FILE",
        help="also write a page: checks, how the values of every tensor lie, what changed since the checkpoint before",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="URL", help="with --html: the checkpoint to compare with (default: the one before it)"
    )
    parser.add_argument("--record", action="store_true", help="write the report into the run and move verified.json")
    parser.add_argument(
        "--sign-key", type=Path, metavar="FILE",
        help="with --record: sign the manifest of what is accepted with this Ed25519 key (default: verify.signing_key)",
    )  # fmt: skip
    parser.add_argument(
        "--public-key",
        type=Path,
        metavar="FILE",
        help="also check that its manifest is signed with the other half of this key",
    )
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.set_defaults(verb=_verify)


def _verify(options: argparse.Namespace) -> int:
    import json

    from rich.console import Console

    from giblet.checkpoint.layout import split_address
    from giblet.config import GibletConfig
    from giblet.errors import ConfigError
    from giblet.storage import open_storage
    from giblet.storage.embedded import embedded_if_asked
    from giblet.verify import record, render, verify
    from giblet.verify.opening import open_source

    settings = config_of(options) if config_path(options) or options.overrides else GibletConfig()
    config = settings if _says_what_to_expect(options) else None
    if (options.url is None) == (options.diff is None):
        raise ConfigError("name one checkpoint, or two with --diff", remedy="giblet verify URL")
    if options.diff is not None:
        return _diff(options, settings)
    _check_page(options)
    signer, public_key = _keys(options, settings)
    told = settings.verify.model_fields_set if options.overrides else set()
    restore = options.restore
    if restore is None:
        restore = (config is not None or "restore" in told) and settings.verify.restore
    with embedded_if_asked(settings.checkpoint):
        against = open_source(options.against, None, settings.checkpoint) if options.against is not None else None
        report = verify(
            options.url, access=settings.checkpoint, config=config, restore=restore,
            magnitude_limit=settings.verify.magnitude_limit if "magnitude_limit" in told else None,
            distributions=options.html is not None, public_key=public_key,
        )  # fmt: skip
        if options.html is not None:
            _write_page(options.html, report, against, settings)
        if options.record:
            record(report, open_storage(split_address(report.url)[0], settings.checkpoint), signer=signer)
    if options.json:
        say(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        render(report, Console())
    return report.exit_code


_HOW_TO_JUDGE = ("checkpoint.", "verify.", "telemetry.")


def _says_what_to_expect(options: argparse.Namespace) -> bool:
    """Whether a configuration was given that the checkpoint is to match, and not only how it is read and judged."""
    return bool(config_path(options)) or any(not word.startswith(_HOW_TO_JUDGE) for word in options.overrides)


def _keys(options: argparse.Namespace, settings: GibletConfig) -> tuple[Signer | None, Ed25519PublicKey | None]:
    """The keys that were named, read before gigabytes are."""
    from giblet.errors import ConfigError
    from giblet.verify.signing import Signer, read_public_key

    if options.sign_key is not None and not options.record:
        raise ConfigError("--sign-key signs what --record accepts", remedy="add --record")
    private = (options.sign_key or settings.verify.signing_key) if options.record else None
    signer = Signer.read(Path(private)) if private is not None else None
    return signer, read_public_key(options.public_key) if options.public_key is not None else None


def _check_page(options: argparse.Namespace) -> None:
    """What is wrong with the page is said before gigabytes are read."""
    from giblet.errors import ConfigError

    if options.against is not None and options.html is None:
        raise ConfigError("--against is for the page of --html", remedy="add --html FILE, or use --diff A B")
    if options.html is not None and not options.html.absolute().parent.is_dir():
        raise ConfigError(f"--html {options.html}: there is no folder {options.html.parent}", remedy="make it first")
    if options.html is not None and options.html.is_dir():
        raise ConfigError(f"--html {options.html}: is a folder", remedy="name a file in it")


def _write_page(path: Path, report: Report, against: Source | None, settings: GibletConfig) -> None:
    from giblet.verify.page import write_page
    from giblet.verify.previous import compare

    write_page(path, report, compare(report, against, config=settings.checkpoint))


def _diff(options: argparse.Namespace, settings: GibletConfig) -> int:
    import json

    from rich.console import Console

    from giblet.storage.embedded import embedded_if_asked
    from giblet.verify.difference import difference, render_difference
    from giblet.verify.opening import open_source

    with embedded_if_asked(settings.checkpoint):
        first, second = (open_source(url, None, settings.checkpoint) for url in options.diff)
        found = difference(first, second)
    if options.json:
        say(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        render_difference(found, Console())
    return 0
