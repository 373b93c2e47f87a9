"""`giblet example` and `giblet prepare`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from giblet.commands.common import Verbs, config_arguments, config_of, print_result

if TYPE_CHECKING:
    from giblet.config import GibletConfig
    from giblet.data.prepared import PreparedDataset


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    _add_example(verbs)
    _add_prepare(verbs)


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
    print_result(
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
    config_arguments(parser)
    parser.add_argument(
        "--publish", action="store_true",
        help="copy it to checkpoint.url/datasets, for other machines; if it is there already, fetch it from there",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print path, hash and sizes as JSON")
    parser.set_defaults(verb=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    config = config_of(options, [f"data.bids={options.bids}"] if options.bids else [])
    dataset = _prepared(config, named=options.bids, publish_it=options.publish)
    manifest = dataset.manifest
    trs = {name: sum(stop - start for _, start, stop in blocks) for name, blocks in manifest.split.items()}
    row = {
        "path": str(dataset.path), "content_hash": manifest.content_hash, "tr_seconds": manifest.tr_seconds,
        "subjects": list(dataset.subjects), "presentations": len(dataset.presentations),
        "voxels": manifest.dimensions.voxels, "trs": trs, "simulated": manifest.simulated, "notes": manifest.notes,
    }  # fmt: skip
    for note in manifest.notes:
        print(f"note: {note}", file=sys.stderr)  # noqa: T201
    print_result(
        options, row,
        f"{dataset.path}: {len(dataset.subjects)} subjects, {manifest.dimensions.voxels} voxels, TRs "
        + ", ".join(f"{count} {name}" for name, count in trs.items()),
    )  # fmt: skip
    return 0


def _prepared(config: GibletConfig, *, named: str | None, publish_it: bool) -> PreparedDataset:
    from giblet.data.ensure import ensure_prepared
    from giblet.data.prepare import prepare
    from giblet.data.transfer import publish
    from giblet.storage import open_storage
    from giblet.storage.embedded import embedded_if_asked

    if config.data.prepared is not None and named is None:
        return ensure_prepared(config)
    if not publish_it:
        return prepare(config.data)
    with embedded_if_asked(config.checkpoint):
        storage = open_storage(config.checkpoint.url, config.checkpoint)
        dataset = prepare(config.data, published=storage)
        publish(dataset, storage)
    return dataset
