"""`make bench`: giblet beside the bare tools on the same work, in one run, as ratios with their spread.

Absolute times depend on the machine and on what else it does; each round therefore runs both sides in turn, and the
ratio of each round is what counts. Each part says its goals in its module, ci/benches/NAME.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benches.common import Options, Row

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # some parts share their ground with the tests
BENCHES = {
    "prepare": "a film to a prepared dataset, beside ffmpeg and EnCodec",
    "loop": "training steps, beside bare PyTorch",
    "telemetry": "what metrics cost",
    "launch": "what the launcher and its hang watch cost",
    "verify": "reading checkpoints back, beside the obvious script and beside hashing alone",
    "checkpoint": "saving and loading, beside bare requests and other writers and readers",
}
"""Each is a module in ci/benches/ with `rows(options)`."""


def main() -> int:
    """Run the benchmarks that are asked for, and print a table."""
    parts = "".join(f"\n  {name:12} {what}" for name, what in BENCHES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nparts:{parts}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (3)")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of the film (10: all; at least 4)")
    parser.add_argument("--gb", type=float, default=2.0, help="size of a checkpoint to verify (2; production: 13.6)")
    parser.add_argument("--megabytes", type=int, default=256, help="size of a checkpoint to save and load (256)")
    parser.add_argument("--only", choices=list(BENCHES), action="append", help="this part alone; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    os.chdir(ROOT)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="giblet-bench-") as folder:
        asked = Options(Path(folder), options.rounds, options.minutes, options.gb, options.megabytes)
        for name in options.only or BENCHES:
            rows += importlib.import_module(f"benches.{name}").rows(asked)
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    return 0


def table(rows: Sequence[Row]) -> str:
    """Rows for a terminal."""
    lines = [f"{'benchmark':44} {'ratio':>7} {'least':>7} {'most':>7}  {'goal':9} note"]
    lines += [
        f"{r['benchmark']:44} {r['median']:7.3f} {r['least']:7.3f} {r['most']:7.3f}  {r['goal']:9} {r['note']}"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
