"""The main job, end to end, on embedded parts: `make demo`.

Real film → prepared data → training in two processes, killed once on purpose and resumed → S3 → verification → report.
Every step is a `giblet` command that you can type yourself; the demo prints it. What is there already (film, data set,
prepared dataset) is used again, so that a second demo only trains, verifies and evaluates.

`--quick` is the same on four minutes of the film, for the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from giblet.checkpoint.resume import best_ref
from giblet.checkpoint.survey import survey
from giblet.config import load_config
from giblet.config.load import leaves
from giblet.storage import Storage
from giblet.storage.embedded import embedded_s3

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/demo.yaml"
EXPECTED_SECONDS = {"example": 90.0, "prepare": 90.0, "train": 50.0, "resume": 90.0, "verify": 20.0, "evaluate": 100.0}
"""Of a first time on two cores; the last demo's own times replace them."""
STEPS_AFTER_COMMIT = 4
"""The demo kills training once it has gone so far beyond a committed checkpoint that work is lost."""


class Demo:
    """The steps, and how long each is expected to take."""

    def __init__(self, timings: Path) -> None:
        self.timings = timings
        self.begun = time.monotonic()
        self.seconds = {**EXPECTED_SECONDS, **self._remembered()}
        self.left = list(EXPECTED_SECONDS)

    def _remembered(self) -> dict[str, float]:
        with contextlib.suppress(OSError, ValueError):
            return {str(name): float(value) for name, value in json.loads(self.timings.read_text()).items()}
        return {}

    @contextlib.contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Announce a step, time it, remember it for the next estimate."""
        number = len(EXPECTED_SECONDS) - len(self.left) + 1
        left = sum(self.seconds[step] for step in self.left)
        say(f"\n[{number}/{len(EXPECTED_SECONDS)}] {what}   (about {minutes(left)} left in all)")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        self.left.remove(name)
        self.timings.write_text(json.dumps(self.seconds, indent=2) + "\n")


QUICK = [
    "data.video.height=18", "data.video.width=32", "data.segment_trs=8", "model.voxel_hidden=32", "training.epochs=15",
    "checkpoint.save_every_epochs=3",
]  # fmt: skip
QUICK_EXAMPLE = ["--minutes", "4", "--resolution-mm", "8", "--subjects", "1"]


def main() -> int:
    """Run every step; the exit code of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes (demo)")
    parser.add_argument("--quick", action="store_true", help="four minutes of the film, one subject, coarse voxels")
    options = parser.parse_args()
    os.chdir(ROOT)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(folder / "seconds.json")
    run = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    overrides = [
        f"run.name={run}", f"data.bids={folder / 'bids'}", f"data.cache_dir={folder / 'datasets'}",
        f"checkpoint.embedded_dir={folder / 's3'}", *(QUICK if options.quick else []),
    ]  # fmt: skip
    config = load_config(CONFIG, overrides)
    changed = [text for text in overrides if text not in (f"{key}={value}" for key, value in defaults())]
    settings = ["--config", CONFIG, *(part for text in changed for part in ("--set", text))]
    with demo.step("example", "a real film, and simulated brains that watched it"):
        giblet("example", str(folder / "bids"), *(QUICK_EXAMPLE if options.quick else []))
    with demo.step("prepare", "film, sound, words and BOLD onto the TR grid"):
        giblet("prepare", *settings)
    bucket, _, prefix = config.checkpoint.url.removeprefix("s3://").partition("/")
    with embedded_s3(config.checkpoint.embedded_dir, bucket=bucket) as server:
        say(f"\nan S3 server of our own (SeaweedFS) listens at {server.endpoint_url}")
        storage = server.storage(bucket, prefix)
        with demo.step("train", f"training in {config.training.processes} processes, which this demo will kill"):
            safe = train_and_kill(storage, run, settings)
        with demo.step("resume", f"the same command again: it goes on from step {safe}"):
            giblet("train", *settings)
        with demo.step("verify", "reading every byte back, and judging"):
            for url in checkpoint_urls(storage, run):
                giblet("verify", url, "--record", *settings)
        with demo.step("evaluate", "how well does it predict held-out scans?"):
            giblet("evaluate", *settings, "--out", str(folder / "report"))
    say(f"\ndone in {minutes(time.monotonic() - demo.begun)}. Look at {folder / 'report' / 'report.html'}")
    return 0


def defaults() -> Iterator[tuple[str, object]]:
    """The demo configuration's own keys."""
    return leaves(load_config(CONFIG).model_dump(mode="json"))


def train_and_kill(storage: Storage, run: str, settings: list[str]) -> int:
    """Start training; SIGKILL all of it a few steps after a commit. Returns the step that is safe."""
    command = announce("train", *settings)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        if " INFO step " not in line:
            continue
        safe = newest_step(storage, run)
        if safe and int(fields["step"]) >= safe + STEPS_AFTER_COMMIT:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            say(f"killed with SIGKILL at step {fields['step']}; the newest committed checkpoint is of step {safe}")
            return newest_step(storage, run)
    sys.exit(f"training ended by itself (exit {process.wait()}) before the demo could kill it")


def newest_step(storage: Storage, run: str) -> int:
    """Step of the newest commit; 0 if there is none."""
    return max((entry.ref.step for entry in survey(storage, run) if entry.committed), default=0)


def checkpoint_urls(storage: Storage, run: str) -> list[str]:
    """The run's newest checkpoint and its best one, which the report is about; often they are the same."""
    newest = max(entry.ref for entry in survey(storage, run) if entry.committed)
    return [f"{storage.url}/{ref.prefix}" for ref in sorted({newest, best_ref(storage, run) or newest})]


def giblet(*arguments: str) -> None:
    """One giblet command; ends the demo with its exit code if it fails."""
    done = subprocess.run(announce(*arguments), check=False)
    if done.returncode:
        sys.exit(done.returncode)


def announce(*arguments: str) -> list[str]:
    """Print a command as a person would type it; returns it as the system takes it."""
    say(f"  $ .venv/bin/giblet {' '.join(arguments)}")
    return [sys.executable, "-m", "giblet", *arguments]


def minutes(seconds: float) -> str:
    """Seconds as a person says them."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def say(text: str) -> None:
    """To the person watching."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; `make demo` starts again with what is there")
        sys.exit(143)
