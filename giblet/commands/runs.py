"""`giblet runs`, `giblet export` and `giblet import`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giblet.commands.common import Verbs, config_arguments, config_of, print_result

if TYPE_CHECKING:
    from giblet.config import GibletConfig
    from giblet.storage import Storage
    from giblet.verify.ledger import Ledger


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    _add_runs(verbs)
    _add_export(verbs)
    _add_import(verbs)


def _add_runs(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "runs",
        help="list runs; show one and its ledger; prune one",
        description="Lists the runs under checkpoint.url: steps, sizes, verdicts, age. `runs show` lists one run's "
        "starts and checkpoints, `runs prune` removes what retention does not keep.",
    )
    config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(verb=_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    show = actions.add_parser("show", help="one run's checkpoints and starts")
    show.add_argument(
        "--ledger", action="store_true",
        help="prove from the run's records that each sample of each epoch was used exactly once (exit 1 if it cannot)",
    )  # fmt: skip
    show.set_defaults(verb=_show)
    prune = actions.add_parser(
        "prune",
        help="remove checkpoints that retention does not keep",
        description="Says what it would remove; with --yes it does. The newest, the best, the verified, the one that "
        "the run went on from and quarantined ones always stay.",
    )
    prune.add_argument("--keep-last", type=int, metavar="N", help="how many to keep (default: checkpoint.keep_last)")
    prune.add_argument("--yes", action="store_true", help="remove them")
    prune.set_defaults(verb=_prune)
    for action in (show, prune):
        action.add_argument("run", metavar="RUN", help="a run's name, or <checkpoint.url>/runs/NAME")
        _repeat_arguments(action)


def _repeat_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `runs` behind its actions too, without defaults that would undo what stood before them."""
    parser.add_argument("--config", "-c", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="values file")
    parser.add_argument(
        "--set", action="append", default=argparse.SUPPRESS, metavar="KEY=VALUE", dest="overrides", help="override"
    )
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print everything as JSON")


def _add_export(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "export",
        help="write a checkpoint as one safetensors file, or as a legacy .pt",
        description="Reads a checkpoint back, every byte checked, and writes one file: by default a safetensors file "
        "of the model's weights; with --format legacy a torch file with optimizer and history, which "
        "torch.load(weights_only=True) opens.",
    )
    parser.add_argument("url", metavar="URL", help="a run (its newest checkpoint), or one of its checkpoints")
    parser.add_argument("file", type=Path, metavar="FILE", help="where to write")
    config_arguments(parser)
    parser.add_argument("--format", choices=["safetensors", "legacy"], default="safetensors", help="(safetensors)")
    parser.add_argument("--everything", action="store_true", help="safetensors: the optimizer's tensors too")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(verb=_export)


def _add_import(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "import",
        help="begin a run with the weights of a legacy .pt",
        description="Writes the file's weights as the run's checkpoint of step 0; `giblet train` then starts from it. "
        "Optimizer, schedule and epochs begin anew. A bare pickle, which could run any program, is refused.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.pt", help="a torch zip file")
    config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(verb=_import)


def _list(options: argparse.Namespace) -> int:
    from giblet.checkpoint.runs import list_runs
    from giblet.storage import open_storage
    from giblet.storage.embedded import embedded_if_asked

    config = config_of(options)
    with embedded_if_asked(config.checkpoint):
        runs = list_runs(open_storage(config.checkpoint.url, config.checkpoint))
    rows = [
        (
            run.run, run.newest_step, _age(run.newest_unix_seconds), run.verdict, run.verified_step, run.checkpoints,
            run.quarantined or None, _size(run.size_bytes), run.starts, run.ended or "no word",
        )
        for run in runs
    ]  # fmt: skip
    head = (
        "run", "newest step", "age", "verdict", "verified step", "checkpoints", "quarantined", "size", "starts", "ended"
    )  # fmt: skip
    text = _table(head, rows) if runs else f"no runs under {config.checkpoint.url}"
    print_result(options, {"url": config.checkpoint.url, "runs": [asdict(run) for run in runs]}, text)
    return 0


def _show(options: argparse.Namespace) -> int:
    from giblet.checkpoint.runs import list_checkpoints
    from giblet.storage.embedded import embedded_if_asked

    config = config_of(options)
    with embedded_if_asked(config.checkpoint):
        storage, run = locate(options.run, config)
        if options.ledger:
            return _show_ledger(options, storage, run)
        checkpoints = list_checkpoints(storage, run)
        starts = _starts(storage, run)
    rows = [
        (
            c.step, c.attempt, _age(c.committed_unix_seconds), _size(c.size_bytes),
            "quarantined" if c.quarantined else c.verdict, "newest verified" if c.verified else "",
        )
        for c in checkpoints
    ]  # fmt: skip
    began = [(s["number"], s["processes"], s["resumed_step"], s["ended"] or "no word", s["last_step"]) for s in starts]
    text = "\n\n".join(
        [
            _table(("start", "processes", "from step", "ended", "at step"), began),
            _table(("step", "attempt", "age", "size", "verdict", ""), rows) if rows else "no checkpoint is committed",
        ]
    )
    row = {"run": run, "url": storage.url, "starts": starts, "checkpoints": [asdict(c) for c in checkpoints]}
    print_result(options, row, text)
    return 0


def _starts(storage: Storage, run: str) -> list[dict[str, Any]]:
    from giblet.checkpoint import layout
    from giblet.checkpoint.records import read_record

    found = []
    listed = (layout.start_number(info.key) for info in storage.list(layout.starts_prefix(run)))
    for number in sorted(number for number in listed if number is not None):
        start = read_record(storage, layout.start_key(run, number)) or {}
        end = read_record(storage, layout.end_key(run, number)) or {}
        found.append(
            {
                "number": number, "processes": start.get("world_size"), "host": start.get("host"),
                "resumed_step": (start.get("resumed_from") or {}).get("step", 0),
                "ended": end.get("cause"), "exit_code": end.get("exit_code"), "last_step": end.get("step"),
                "message": end.get("message"),
            }
        )  # fmt: skip
    return found


def _show_ledger(options: argparse.Namespace, storage: Storage, run: str) -> int:
    from giblet.verify.ledger import read_ledger

    ledger = read_ledger(storage, run)
    print_result(options, ledger.to_json(), _ledger_text(ledger))
    return 0 if ledger.proven else 1


def _ledger_text(ledger: Ledger) -> str:
    rows = [
        (
            s.number, s.world_size, s.first_step, s.last_step,
            f"{s.first_step} to {s.used_until}" if s.used_until is not None and s.used_until >= s.first_step else None,
            s.cause or "no word",
        )
        for s in ledger.starts
    ]  # fmt: skip
    whole, rest = divmod(ledger.step, ledger.steps_per_epoch)
    lines = [
        f"run {ledger.run}, checkpoint of step {ledger.step}: {ledger.samples_consumed} samples of dataset "
        f"{(ledger.dataset or '?')[:12]}, {whole} epoch{'s' * (whole != 1)}"
        + (f" and {rest} steps of the next" if rest else ""),
        "",
        _table(("start", "processes", "first step", "last known step", "steps in the weights", "ended"), rows),
        "",
    ]
    if ledger.proven:
        lines.append("PROVEN: each epoch's samples are in the weights exactly once, in the order of the seed.")
    else:
        lines.append("NOT PROVEN:")
        lines += [f"  {fault}" for fault in ledger.faults]
        for epoch in ledger.epochs:
            lines += [f"  epoch {epoch.epoch}: not used {_some(epoch.missed)}"] * bool(epoch.missed)
            lines += [f"  epoch {epoch.epoch}: used twice {_some(epoch.twice)}"] * bool(epoch.twice)
    if ledger.left_out:
        lines.append(
            f"Of {ledger.samples} samples an epoch uses {ledger.samples - ledger.left_out}: whole global batches of "
            f"{ledger.global_batch_samples}; which ones are left out changes from epoch to epoch."
        )
    for repeated in ledger.repeated:
        count = sum(len(samples) for samples in repeated.samples.values())
        named = "; ".join(f"epoch {epoch}: {_some(samples)}" for epoch, samples in repeated.samples.items())
        fate = "not in a checkpoint yet" if repeated.ahead else "repeated by a later start, and in the weights once"
        lines.append(
            f"Start {repeated.start} also did steps {repeated.first_step} to {repeated.last_step} ({count} samples), "
            f"{fate}: {named}."
        )
    unknown = [str(start.number) for start in ledger.starts if start.open_end]
    if unknown:
        lines.append(
            f"Start {', '.join(unknown)} left no word of its end: it was killed, or is running. What it did after its "
            "last known step is not known; none of that is in the weights."
        )
    return "\n".join(lines)


def _prune(options: argparse.Namespace) -> int:
    from giblet.checkpoint.retention import prunable, remove
    from giblet.errors import ConfigError
    from giblet.storage.embedded import embedded_if_asked

    config = config_of(options)
    settings = config.checkpoint
    if options.keep_last is not None:
        if options.keep_last < 1:
            raise ConfigError(f"--keep-last {options.keep_last}: at least 1 stays", remedy="name 1 or more")
        settings = settings.model_copy(update={"keep_last": options.keep_last})
    with embedded_if_asked(config.checkpoint):
        storage, run = locate(options.run, config)
        doomed = prunable(storage, run, settings)
        if options.yes:
            for entry in doomed:
                remove(storage, entry)
    rows = [
        (e.ref.step, e.ref.attempt, _size(e.size_bytes), "committed" if e.committed else "never committed")
        for e in doomed
    ]
    total = _size(sum(entry.size_bytes for entry in doomed))
    told = f"removed {total}" if options.yes else f"would remove {total}; nothing was changed: add --yes"
    text = f"{_table(('step', 'attempt', 'size', ''), rows)}\n\n{told}" if rows else "nothing to remove"
    removed = [{"step": e.ref.step, "attempt": e.ref.attempt, "size_bytes": e.size_bytes} for e in doomed]
    print_result(options, {"run": run, "removed" if options.yes else "would_remove": removed}, text)
    return 0


def _export(options: argparse.Namespace) -> int:
    from giblet.checkpoint.export import export_safetensors
    from giblet.checkpoint.opened import open_checkpoint
    from giblet.storage.embedded import embedded_if_asked
    from giblet.training.legacy import export_legacy

    config = config_of(options)
    with embedded_if_asked(config.checkpoint):
        checkpoint = open_checkpoint(options.url, config.checkpoint)
        if options.format == "legacy":
            written = export_legacy(checkpoint, options.file)
        else:
            written = export_safetensors(checkpoint, options.file, everything=options.everything)
    row = {**asdict(written), "path": str(written.path), "url": checkpoint.url, "step": checkpoint.manifest.step}
    print_result(
        options, row,
        f"{written.path}: {written.tensors} tensors, {written.elements:,} elements, {_size(written.size_bytes)}, of "
        f"step {checkpoint.manifest.step}",
    )  # fmt: skip
    return 0


def _import(options: argparse.Namespace) -> int:
    from giblet.data.ensure import ensure_prepared
    from giblet.storage.embedded import embedded_if_asked
    from giblet.training.legacy import import_legacy, read_legacy

    config = config_of(options)
    read_legacy(options.file)  # what is no such file is refused before anything is prepared
    with embedded_if_asked(config.checkpoint):
        ref = import_legacy(options.file, config, ensure_prepared(config))
    row = {"run": ref.run, "step": ref.step, "attempt": ref.attempt, "url": f"{config.checkpoint.url}/{ref.prefix}"}
    print_result(options, row, f"run {ref.run} begins with the weights of {options.file}; go on with `giblet train`")
    return 0


def locate(run: str, config: GibletConfig) -> tuple[Storage, str]:
    """The store and the name of a run that is there. Raises `CheckpointError` if it is not."""
    from giblet.checkpoint.layout import split_address
    from giblet.errors import CheckpointError
    from giblet.storage import open_storage

    url, name = config.checkpoint.url, run
    if "/" in run:
        url, rest = split_address(run)
        name = rest.split("/")[1]
    storage = open_storage(url, config.checkpoint)
    if next(iter(storage.list(f"runs/{name}/")), None) is None:
        raise CheckpointError(f"{url} holds no run {name}", remedy="list them with `giblet runs`")
    return storage, name


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns side by side; numbers to the right."""
    cells = [[*head], *(["–" if value is None else str(value) for value in row] for row in rows)]
    numbers = [all(isinstance(row[i], int | None) for row in rows) for i in range(len(head))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _some(samples: Sequence[int], most: int = 12) -> str:
    shown = ", ".join(map(str, samples[:most]))
    return f"samples {shown}" + (f" and {len(samples) - most} more" if len(samples) > most else "")


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def _age(unix_seconds: float | None) -> str | None:
    if unix_seconds is None:
        return None
    seconds = max(time.time() - unix_seconds, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
