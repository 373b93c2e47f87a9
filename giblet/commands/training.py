"""`giblet train` and `giblet evaluate`."""

from __future__ import annotations

import argparse
import contextlib
import os
from dataclasses import asdict
from pathlib import Path

from giblet.commands.common import Verbs, config_arguments, config_of, print_result
from giblet.telemetry import logs


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    _add_train(verbs)
    _add_evaluate(verbs)


def _add_train(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "train",
        help="train, or go on with a run where it was",
        description="Prepares the data if need be, goes on from the newest good checkpoint of `run.name`, and starts "
        "training.processes ranks itself unless torchrun has. Ctrl-C or SIGTERM saves and stops (exit 143); the same "
        "command goes on. A second Ctrl-C leaves at once.",
    )
    config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print how the run ended as JSON")
    parser.set_defaults(verb=_train)


def _train(options: argparse.Namespace) -> int:
    config = config_of(options)
    logs.configure(config.telemetry.log_format, run=config.run.name)
    started_by_torchrun = "RANK" in os.environ
    many = config.training.processes > 1 and not started_by_torchrun
    if many:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, and before torch reads it

    from giblet.data.ensure import ensure_prepared
    from giblet.storage.embedded import embedded_if_asked
    from giblet.training import launch_processes, train
    from giblet.training.zygote import Zygote

    with contextlib.ExitStack() as stack:
        zygote = stack.enter_context(Zygote()) if many else None  # before this process has threads
        if not started_by_torchrun:
            stack.enter_context(embedded_if_asked(config.checkpoint))
        path = ensure_prepared(config).path
        if zygote is None:
            result = train(config, dataset_path=path)
        else:
            result = launch_processes(config, dataset_path=path, zygote=zygote)
    row = {**asdict(result), "run": config.run.name}
    print_result(
        options, row, f"run {config.run.name} ended at step {result.step} (epoch {result.epoch}): {result.reason}"
    )
    return 0


def _add_evaluate(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="score a checkpoint on held-out runs, and write the report",
        description="Per-voxel correlation over time on held-out runs beside the ceiling, chance, and banded ridge. "
        "Writes evaluation.json, NIfTI maps and one self-contained report.html.",
    )
    config_arguments(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of this step (default: the best, or the newest)"
    )
    parser.add_argument("--out", "-o", type=Path, required=True, metavar="DIR", help="folder for report and maps")
    parser.add_argument("--no-baseline", action="store_true", help="leave banded ridge out (quicker)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(verb=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from giblet.data.ensure import ensure_prepared
    from giblet.evaluate.checkpoint import choose_checkpoint, load_model, run_facts
    from giblet.evaluate.evaluate import evaluate
    from giblet.storage import open_storage
    from giblet.storage.embedded import embedded_if_asked

    config = config_of(options)
    dataset = ensure_prepared(config)
    with embedded_if_asked(config.checkpoint):
        storage = open_storage(config.checkpoint.url, config.checkpoint)
        ref = choose_checkpoint(storage, config.run.name, options.step)
        model, state = load_model(config, dataset, storage, ref)
        facts = run_facts(storage, ref, state)
    result = evaluate(config, dataset, model, options.out, facts=facts, with_baseline=not options.no_baseline)
    print_result(options, result.summary, f"report: {result.report_path}")
    return 0
