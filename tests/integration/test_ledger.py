"""The ledger of a run that was killed for real, beside a witness of what its processes really did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from giblet.cli import main
from giblet.data.batches import BatchBuilder
from giblet.data.prepared import PreparedDataset
from giblet.storage import LocalStorage
from giblet.verify.ledger import Ledger, read_ledger
from tests.support.prepared import make_prepared
from tests.support.training import small_config
from tests.support.witnessed_training import digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EPOCHS = 8
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "d")


def start(folder: Path, dataset: PreparedDataset, name: str, *, ranks: int, kill_at: int | None, sign: int = 0) -> int:
    """One start of the run on so many ranks, sent a signal once its witness saw a step; the exit code."""
    config = small_config(
        run={"name": "r"},
        training={"epochs": EPOCHS, "sharding": "ddp"},
        checkpoint={"url": str(folder), "save_every_epochs": 1, "asynchronous": False, "keep_last": 1},
    )
    job, seen = folder / "job.json", folder / name
    job.write_text(config.model_dump_json())
    seen.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, "-m", "tests.support.witnessed_training", str(job), str(dataset.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "200"}
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen([*command, str(seen)], cwd=ROOT, stdout=log, stderr=log, env=environment)
        while kill_at is not None and process.poll() is None and max(steps_seen(seen), default=0) < kill_at:
            time.sleep(0.005)
        if kill_at is not None:
            process.send_signal(sign)
        return process.wait(280)


def lines(seen: Path) -> list[list[str]]:
    """What every rank of a start wrote, whole lines: step, digests."""
    return [
        line.split() for file in seen.iterdir() for line in file.read_text().splitlines(keepends=True) if "\n" in line
    ]


def steps_seen(seen: Path) -> set[int]:
    return {int(step) for step, *_ in lines(seen)}


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> tuple[Path, Ledger]:
    folder = tmp_path_factory.mktemp("run")
    assert start(folder, dataset, "1", ranks=1, kill_at=5, sign=signal.SIGKILL) == -signal.SIGKILL
    assert start(folder, dataset, "2", ranks=2, kill_at=9, sign=signal.SIGTERM) != 0, (folder / "2.log").read_text()
    assert start(folder, dataset, "3", ranks=1, kill_at=None) == 0, (folder / "3.log").read_text()
    return folder, read_ledger(LocalStorage(folder), "r")


def test_it_is_proven_and_the_witness_agrees(run, dataset):
    folder, ledger = run
    assert ledger.proven, ledger.faults
    assert [(s.number, s.world_size) for s in ledger.starts] == [(1, 1), (2, 2), (3, 1)]
    builder = BatchBuilder(dataset, segments(dataset), segment_trs=8, context_trs=context(dataset))
    names = {digest(builder.build([index])): index for index in range(len(builder))}
    assert len(names) == ledger.samples
    used: Counter[tuple[int, int]] = Counter()
    for entry in ledger.starts:
        for step, *digests in lines(folder / str(entry.number)):
            if entry.first_step <= int(step) <= (entry.used_until or 0):
                used.update(((int(step) - 1) // ledger.steps_per_epoch, names[text]) for text in digests)
    assert set(used.values()) == {1}
    per_epoch = Counter(epoch for epoch, _ in used)
    assert per_epoch == {epoch.epoch: epoch.used for epoch in ledger.epochs}
    assert len(per_epoch) == EPOCHS


def test_what_each_start_is_said_to_have_done_it_did(run):
    folder, ledger = run
    for entry in ledger.starts:
        did = steps_seen(folder / str(entry.number))
        assert min(did) == entry.first_step
        if entry.open_end:
            assert entry.last_step <= max(did), "said to have done more than it did"
        else:
            assert entry.last_step == max(did)
    assert ledger.starts[0].open_end
    assert not ledger.starts[1].open_end, "SIGTERM saves and says so"
    assert not [r for r in ledger.repeated if r.start == 2], "SIGTERM loses no step"


def test_the_command_says_the_same(run, capsys):
    folder, ledger = run
    arguments = ["runs", "show", f"{folder}/runs/r", "--ledger"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(ledger.to_json()))
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "PROVEN" in text
    assert "Start 1 left no word of its end" in text


def test_an_end_told_by_another_makes_what_was_lost_known(run, dataset):
    """What `giblet launch` writes for a start that could not: the steps beyond its last save are named as repeated."""
    folder, ledger = run
    did = max(steps_seen(folder / "1"))
    end = {"format": "giblet.end/1", "cause": "killed", "exit_code": 128, "step": did, "message": ""}
    (folder / "runs/r/starts/1.end.json").write_text(json.dumps(end))
    told = read_ledger(LocalStorage(folder), "r")
    used_until = ledger.starts[0].used_until or 0
    assert told.proven
    assert [(r.start, r.first_step, r.last_step) for r in told.repeated] == (
        [(1, used_until + 1, did)] if did > used_until else []
    )


def context(dataset: PreparedDataset) -> int:
    """TRs before a segment that training adds."""
    from giblet.config import GibletConfig
    from giblet.data.hrf import hrf_kernel

    kernel = hrf_kernel(GibletConfig(), dataset.manifest.tr_seconds)
    return 0 if kernel is None else len(kernel) - 1


def segments(dataset: PreparedDataset):
    return dataset.segments("train", 8, context(dataset))
