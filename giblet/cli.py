"""The command line: one subcommand a verb. Heavy imports happen inside a verb, so that `--help` is quick.

Results go to standard output (with `--json` for scripts), everything else to standard error. A `GibletError` ends
the process with its own exit code (giblet/errors.py) and one message.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

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
    for add in (_add_example, _add_prepare, _add_train, _add_verify, _add_evaluate, _add_config):
        add(verbs)
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


def _add_example(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "example",
        help="write the example BIDS data set: a real film, simulated brains",
        description="Writes a BIDS data set: Big Buck Bunny in three runs, annotations, and SIMULATED BOLD whose true "
        "signal and ceiling are kept beside it. A complete one is left alone.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--resolution-mm", type=int, default=4, metavar="N", help="voxel size: 3, 4, 5, 6 or 8 (4)")
    parser.add_argument("--subjects", type=int, default=3, metavar="N", help="simulated subjects (3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the simulation (0)")
    parser.add_argument("--tr-seconds", type=float, default=1.5, metavar="S", help="repetition time (1.5)")
    parser.add_argument("--minutes", type=float, metavar="M", help="only the film's first minutes")
    parser.add_argument("--film", type=Path, metavar="FILE", help="another film; needs --annotations")
    parser.add_argument("--annotations", type=Path, metavar="TSV", help="onset, duration, text of that film")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(verb=_example)


def _example(options: argparse.Namespace) -> int:
    from giblet.data.example.write import write_example

    summary = write_example(
        options.directory, resolution_mm=options.resolution_mm, subjects=options.subjects, seed=options.seed,
        tr_seconds=options.tr_seconds, minutes=options.minutes, film_path=options.film,
        annotations_path=options.annotations,
    )  # fmt: skip
    row = {**asdict(summary), "path": str(summary.path)}
    _result(
        options, row,
        f"{summary.path}: {summary.subjects} simulated subjects, {summary.runs} runs, {summary.film_seconds:.0f} s of "
        f"film, {summary.grey_voxels} grey-matter voxels{' (was there already)' if summary.reused else ''}",
    )  # fmt: skip
    return 0


def _add_prepare(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "prepare",
        help="turn a BIDS movie data set into a prepared dataset",
        description="Decodes film, sound and words onto each run's TR grid and cleans the BOLD. It is addressed by a "
        "hash of inputs and settings, so the same inputs are never prepared twice. Killed, it goes on where it was.",
    )
    parser.add_argument("bids", nargs="?", metavar="BIDS", help="BIDS folder (instead of data.bids)")
    _config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print path, hash and sizes as JSON")
    parser.set_defaults(verb=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    from giblet.config import load_config
    from giblet.data.prepare import prepare

    overrides = [*options.overrides, *([f"data.bids={options.bids}"] if options.bids else [])]
    dataset = prepare(load_config(options.config, overrides).data)
    manifest = dataset.manifest
    trs = {name: sum(stop - start for _, start, stop in blocks) for name, blocks in manifest.split.items()}
    row = {
        "path": str(dataset.path), "content_hash": manifest.content_hash, "tr_seconds": manifest.tr_seconds,
        "subjects": list(dataset.subjects), "presentations": len(dataset.presentations),
        "voxels": manifest.dimensions.voxels, "trs": trs, "simulated": manifest.simulated, "notes": manifest.notes,
    }  # fmt: skip
    for note in manifest.notes:
        print(f"note: {note}", file=sys.stderr)  # noqa: T201
    _result(
        options, row,
        f"{dataset.path}: {len(dataset.subjects)} subjects, {manifest.dimensions.voxels} voxels, TRs "
        + ", ".join(f"{count} {name}" for name, count in trs.items()),
    )  # fmt: skip
    return 0


def _add_train(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "train",
        help="train, or go on with a run where it was",
        description="Prepares the data if need be, goes on from the newest good checkpoint of `run.name`, and starts "
        "torchrun itself for training.processes > 1. Ctrl-C or SIGTERM saves and stops (exit 143); the same command "
        "goes on. A second Ctrl-C leaves at once.",
    )
    _config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print how the run ended as JSON")
    parser.set_defaults(verb=_train)


def _train(options: argparse.Namespace) -> int:
    import os

    from giblet.config import load_config
    from giblet.data.ensure import ensure_prepared
    from giblet.storage.embedded import embedded_if_asked
    from giblet.training import launch_processes, train

    config = load_config(options.config, options.overrides)
    logs.configure(config.telemetry.log_format, run=config.run.name)
    started_by_torchrun = "RANK" in os.environ
    with contextlib.nullcontext() if started_by_torchrun else embedded_if_asked(config.checkpoint):
        dataset = ensure_prepared(config)
        many = config.training.processes > 1 and not started_by_torchrun
        result = (launch_processes if many else train)(config, dataset_path=dataset.path)
    row = {**asdict(result), "run": config.run.name}
    _result(options, row, f"run {config.run.name} ended at step {result.step} (epoch {result.epoch}): {result.reason}")
    return 0


def _add_verify(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "verify",
        help="read a checkpoint back, every byte, and judge it",
        description="Judges a run's newest checkpoint, or one checkpoint, safetensors file, DCP folder or legacy .pt. "
        "Exit 0: SAFE, or SAFE WITH WARNINGS; 1: UNSAFE; anything else: it could not be judged.",
    )
    parser.add_argument("url", metavar="URL", help="s3://bucket/prefix/runs/NAME[/checkpoints/…], a folder or a file")
    _config_arguments(parser)
    parser.add_argument(
        "--restore", action=argparse.BooleanOptionalAction,
        help="also load it into the model and score it (default: verify.restore where --config is given)",
    )  # fmt: skip
    parser.add_argument("--record", action="store_true", help="write the report into the run and move verified.json")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.set_defaults(verb=_verify)


def _verify(options: argparse.Namespace) -> int:
    import json

    from rich.console import Console

    from giblet.checkpoint.layout import split_address
    from giblet.config import GibletConfig, load_config
    from giblet.storage import open_storage
    from giblet.storage.embedded import embedded_if_asked
    from giblet.verify import record, render, verify

    config = load_config(options.config, options.overrides) if options.config or options.overrides else None
    settings = config or GibletConfig()
    restore = options.restore if options.restore is not None else config is not None and config.verify.restore
    with embedded_if_asked(settings.checkpoint):
        report = verify(options.url, config=config, restore=restore)
        if options.record:
            record(report, open_storage(split_address(report.url)[0], settings.checkpoint))
    if options.json:
        _say(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        render(report, Console())
    return report.exit_code


def _add_evaluate(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="score a checkpoint on held-out runs, and write the report",
        description="Per-voxel correlation over time on held-out runs beside the ceiling, chance, and banded ridge. "
        "Writes evaluation.json, NIfTI maps and one self-contained report.html.",
    )
    _config_arguments(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of this step (default: the best, or the newest)"
    )
    parser.add_argument("--out", "-o", type=Path, required=True, metavar="DIR", help="folder for report and maps")
    parser.add_argument("--no-baseline", action="store_true", help="leave banded ridge out (quicker)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(verb=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from giblet.config import load_config
    from giblet.data.ensure import ensure_prepared
    from giblet.evaluate.checkpoint import choose_checkpoint, load_model, run_facts
    from giblet.evaluate.evaluate import evaluate
    from giblet.storage import open_storage
    from giblet.storage.embedded import embedded_if_asked

    config = load_config(options.config, options.overrides)
    dataset = ensure_prepared(config)
    with embedded_if_asked(config.checkpoint):
        storage = open_storage(config.checkpoint.url, config.checkpoint)
        ref = choose_checkpoint(storage, config.run.name, options.step)
        model, state = load_model(config, dataset, storage, ref)
        facts = run_facts(storage, ref, state)
    result = evaluate(config, dataset, model, options.out, facts=facts, with_baseline=not options.no_baseline)
    _result(options, result.summary, f"report: {result.report_path}")
    return 0


def _result(options: argparse.Namespace, row: Mapping[str, Any], text: str) -> None:
    import json

    _say(json.dumps(row, indent=2, default=str) if options.json else text)


def _say(text: str) -> None:
    print(text)  # noqa: T201
