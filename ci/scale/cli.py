"""What giblet does at 1,024 GPUs and 70 billion parameters, as far as one machine can tell (docs/scale.md).

    make scale                            both parts
    make scale ARGS="--only checkpoint --ranks 8,64"
    make scale ARGS="--only cluster --workers 1,16 --json"

checkpoint   saves and a resume of the first of N ranks through giblet's real planning, manifest, commit, retention
             and reading; the other ranks' messages and the store are simulated, and no tensor has bytes. No network,
             no GPU. At 1,024 ranks twenty processor minutes and 8 GB of memory or more.
cluster      the chart's job at N workers of 8 GPUs with the real operator, API server and scheduler; the nodes are
             kwok's. Needs `ci/cluster up --nodes 1` before, as root on Linux; builds kwok the first time.

Results are kept in --out (work/scale) as they come, one file a size, and what is there is not measured again: remove a
file to repeat it. Exit code 0; 1 where a part could not be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scale import report

RANKS, WORKERS = [8, 64, 256, 1024], [1, 16, 128]


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for and print the tables, or all numbers as JSON."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one is not None:
        return _one(options)
    failed = False
    if options.only != "cluster":
        for ranks in options.ranks:
            failed |= not _in_own_process(options, ranks)
    if options.only != "checkpoint":
        failed |= not _cluster(options)
    found = report.load(options.out)
    if options.plots:
        from scale import plots

        plots.draw(found, options.plots)
    print(json.dumps(found, indent=2) if options.json else report.tables(found))
    return int(failed)


def _in_own_process(options: argparse.Namespace, ranks: int) -> bool:
    """Peak memory of one size must not be another's."""
    if (options.out / f"checkpoint-{ranks}.json").exists():
        return True
    _say(f"checkpoint at {ranks} ranks")
    words = ["--one", str(ranks), "--out", str(options.out), "--request-ms", str(options.request_ms)]
    return subprocess.run([sys.executable, "-m", "scale", *words], check=False).returncode == 0


def _one(options: argparse.Namespace) -> int:
    from scale.checkpoint import simulate

    result = simulate(options.one, request_seconds=options.request_ms / 1000)
    _keep(options.out / f"checkpoint-{options.one}.json", dataclasses.asdict(result))
    return 0


def _cluster(options: argparse.Namespace) -> bool:
    from localcluster.shell import ClusterError

    from scale import cluster

    missing = [n for n in options.workers if not (options.out / f"cluster-{n}.json").exists()]
    try:
        for result in cluster.measure(missing, _say) if missing else []:
            _keep(options.out / f"cluster-{result.workers}.json", dataclasses.asdict(result))
    except ClusterError as error:
        _say(str(error))
        return False
    return True


def _keep(file: Path, result: dict[str, Any]) -> None:
    file.write_text(json.dumps(result, indent=1) + "\n")


def _say(text: str) -> None:
    print(f"scale: {text}", file=sys.stderr, flush=True)


def _numbers(text: str) -> list[int]:
    return sorted(int(word) for word in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "make scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", choices=["checkpoint", "cluster"], help="one part alone")
    add("--ranks", type=_numbers, default=RANKS, help="world sizes of the checkpoint part (8,64,256,1024)")
    add("--workers", type=_numbers, default=WORKERS, help="sizes of the cluster part (1,16,128)")
    add("--request-ms", type=float, default=20.0, help="how long S3 takes to answer a small request, in the model (20)")
    add("--out", type=Path, default=Path("work/scale"), help="where results are kept (work/scale)")
    add("--plots", type=Path, help="also draw the plots into this folder (docs/images is where the repository's lie)")
    add("--json", action="store_true", help="all numbers as JSON")
    add("--one", type=int, help=argparse.SUPPRESS)
    return parser
