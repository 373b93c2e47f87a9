"""Verification beside the obvious script, and beside reading and hashing the same bytes with nothing else.

Each side is a fresh process that times itself without its imports; files are read once before, so that they come out of
memory. The obvious script takes its time, so that it does the first gigabyte of each kind only, and is compared by the
byte; so that both files fit the memory it maps them, where `torch.load` alone would read them into it.

Goals: >= 10 x the obvious script; <= 1.3 x reading and hashing; <= 600 MB. `--gb 13.6` is the production
network's size.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from typing import Any

from benches.common import Options, Row, row
from benches.verify_files import write_giblet, write_legacy

OBVIOUS_BYTES = 1_000_000_000
_MEASURED = """
import json, re, sys, time
from pathlib import Path
{imports}
began, busy = time.perf_counter(), time.process_time()
{work}
took = dict(seconds=time.perf_counter() - began, cpu=time.process_time() - busy, bytes=count)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps(took | dict(peak=peak, said=said)))
"""
_OURS = (
    "from giblet.verify import verify",
    "report = verify(sys.argv[1])\ncount, said = report.bytes_read, report.verdict",
)
_HASH = (
    "import os, zlib, google_crc32c, numpy as np\nfrom concurrent.futures import ThreadPoolExecutor",
    """
extend = {"crc32": lambda crc, data: zlib.crc32(data, crc), "crc32c": google_crc32c.extend}[sys.argv[2]]
said, size = sys.argv[2], 1 << 18
def work(part):
    path, first, last = part
    buffer, file, done, crc = np.empty(size, np.uint8), os.open(path, os.O_RDONLY), 0, 0
    for at in range(first, last, size):
        got = os.preadv(file, [buffer.data], at)
        crc, done = extend(crc, buffer[:got]), done + got
    os.close(file)
    return done
root, parts, step = Path(sys.argv[1]), [], 1 << 26
for path in [root] if root.is_file() else sorted(root.iterdir()):
    parts += [(path, at, min(at + step, path.stat().st_size)) for at in range(0, path.stat().st_size, step)]
with ThreadPoolExecutor(2) as pool:
    count = sum(pool.map(work, parts))
""",
)
_OBVIOUS = (
    "import torch\nfrom safetensors.torch import load_file",
    f"""
count, said, root = 0, "", Path(sys.argv[1])
def judge(tree):
    global count
    if isinstance(tree, dict):
        for value in tree.values():
            if count < {OBVIOUS_BYTES}:
                judge(value)
    elif isinstance(tree, torch.Tensor):
        rows = max(1, {OBVIOUS_BYTES} * len(tree) // max(tree.nbytes, 1)) if tree.ndim else 1
        tree = tree[:rows] if tree.ndim else tree
        tree.isnan().sum().item(), tree.isinf().sum().item(), (tree == 0).sum().item(), (tree.abs() > 1e6).sum().item()
        count += tree.nbytes
if root.is_file():
    tree = torch.load(root, weights_only=True, mmap=True)
    judge(tree["model_state_dict"])
    weights, count = count, 0
    judge(tree["optimizer_state_dict"])
    count += weights
else:
    for path in sorted(root.glob("*.safetensors")):
        judge(load_file(path))
""",
)


def rows(options: Options) -> list[Row]:
    """A legacy file and a sharded checkpoint, one after the other."""
    found: list[Row] = []
    for name, checksum, write in (("legacy .pt", "crc32", write_legacy), ("sharded", "crc32c", write_giblet)):
        folder = options.folder / "verify"
        folder.mkdir()
        try:
            address = str(write(folder / "checkpoint.pt" if name == "legacy .pt" else folder, options.gigabytes))
            found += _compare(name, address, checksum, options.rounds)
        finally:
            shutil.rmtree(folder)
    return found


def _compare(name: str, address: str, checksum: str, rounds: int) -> list[Row]:
    _side(_HASH, address, checksum)
    sides = [
        (_side(_OURS, address), _side(_HASH, address, checksum), _side(_HASH, address, "crc32c")) for _ in range(rounds)
    ]
    obvious = _side(_OBVIOUS, address)
    ours = [one for one, _, _ in sides]
    rate = statistics.median(one["bytes"] / one["seconds"] for one in ours) / 1e9
    busy = statistics.median(_per_byte(one, "cpu") for one in ours) * 1e9
    alone = [statistics.median(_per_byte(side[n], "cpu") for side in sides) * 1e9 for n in (1, 2)]
    what = f"{ours[0]['bytes'] / 1e9:.1f} GB, {ours[0]['said']}, {rate:.2f} GB/s, {busy:.2f} cpu s/GB"
    slow = [_per_byte(obvious, key) for key in ("seconds", "cpu")]
    return [
        row(f"obvious script / verify, {name}", [slow[0] / _per_byte(one, "seconds") for one in ours],
            goal=">= 10", note=what),
        row("  in processor seconds", [slow[1] / _per_byte(one, "cpu") for one in ours],
            goal=">= 10", note=f"script {slow[1] * 1e9:.2f} cpu s/GB"),
        row(f"verify / reading and {checksum}, {name}", [one["seconds"] / own["seconds"] for one, own, _ in sides],
            goal="<= 1.3", note="the file's own checksum"),
        row("  in processor seconds", [one["cpu"] / own["cpu"] for one, own, _ in sides],
            goal="<= 1.3", note=f"hashing {alone[0]:.2f} cpu s/GB"),
        row("  beside crc32c, in processor seconds", [one["cpu"] / other["cpu"] for one, _, other in sides],
            goal="<= 1.3", note=f"hashing {alone[1]:.2f} cpu s/GB"),
        row(f"peak memory / 600 MB, {name}", [one["peak"] / 600e6 for one in ours],
            goal="<= 1", note=f"{max(one['peak'] for one in ours) / 1e6:.0f} MB"),
    ]  # fmt: skip


def _per_byte(side: dict[str, Any], key: str) -> float:
    return float(side[key]) / float(side["bytes"])


def _side(code: tuple[str, str], *arguments: str) -> dict[str, Any]:
    text = _MEASURED.format(imports=code[0], work=code[1])
    done = subprocess.run([sys.executable, "-c", text, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"a side of the comparison failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
