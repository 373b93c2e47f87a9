"""`giblet runs`: what it lists is what lies there; pruning says what it would do before it does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from giblet.checkpoint import CheckpointStore, layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.resume import pointer_body
from giblet.checkpoint.survey import survey
from giblet.cli import main
from giblet.config.load import load_config_data
from giblet.storage import LocalStorage

BYTES = 4000


def saved(
    storage: LocalStorage, run: str, *steps: int, keep: int = 100, best: int | None = None
) -> list[CheckpointRef]:
    """A start of a run that commits these steps and ends."""
    config = load_config_data({"run": {"name": run}, "checkpoint": {"keep_last": keep}})
    store = CheckpointStore(storage, run, config.checkpoint)
    store.begin(config)
    tensors = {"model.w": torch.zeros(BYTES // 4)}
    refs = [store.save(step, tensors, {"step": step}, wait=True, best=step == best) for step in steps]
    store.end("done", 0, steps[-1] if steps else 0)
    return refs


@pytest.fixture
def url(tmp_path: Path) -> Path:
    """Run `one`: two starts, five checkpoints, the first of them verified, the second the best, the fifth bad."""
    storage = LocalStorage(tmp_path)
    first, *_ = saved(storage, "one", 10, 20, 30, best=20)
    last = saved(storage, "one", 40, 50)[-1]
    storage.put(first.report_key, json.dumps({"verdict": "SAFE"}).encode())
    storage.put(layout.verified_key("one"), pointer_body(first))
    storage.put(last.quarantine_key, b"{}")
    saved(storage, "two")
    return tmp_path


def runs(url: Path, *arguments: str) -> list[str]:
    return ["runs", *arguments, "--set", f"checkpoint.url={url}"]


def test_the_list_has_each_run_with_steps_sizes_and_verdicts(url, capsys):
    assert main(runs(url, "--json")) == 0
    one, two = json.loads(capsys.readouterr().out)["runs"]
    assert (one["run"], one["starts"], one["checkpoints"], one["quarantined"]) == ("one", 2, 4, 1)
    assert (one["newest_step"], one["verified_step"], one["verdict"], one["ended"]) == (40, 10, None, "done")
    assert one["size_bytes"] == sum(p.stat().st_size for p in url.glob("runs/one/**/*") if p.is_file())
    assert (two["newest_step"], two["checkpoints"]) == (None, 0)
    assert main(runs(url)) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "newest", "step"]
    assert first.split()[:2] == ["one", "40"]
    assert second.startswith("two")


def test_an_empty_store_has_no_runs(tmp_path, capsys):
    assert main(runs(tmp_path)) == 0
    assert "no runs under" in capsys.readouterr().out


def test_show_has_each_start_and_checkpoint(url, capsys):
    assert main(runs(url, "show", "one", "--json")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(s["number"], s["resumed_step"], s["ended"], s["last_step"]) for s in shown["starts"]] == [
        (1, 0, "done", 30), (2, 30, "done", 50),
    ]  # fmt: skip
    assert [(c["step"], c["verdict"], c["verified"], c["quarantined"]) for c in shown["checkpoints"]] == [
        (10, "SAFE", True, False), (20, None, False, False), (30, None, False, False), (40, None, False, False),
        (50, None, False, True),
    ]  # fmt: skip
    assert main(["runs", "show", f"{url}/runs/one"]) == 0
    text = capsys.readouterr().out
    assert "newest verified" in text
    assert "quarantined" in text


def test_a_run_that_is_not_there_is_an_error_of_its_own(url, capsys):
    assert main(runs(url, "show", "three")) == 66
    assert "holds no run three" in capsys.readouterr().err


def test_prune_says_what_it_would_do_and_does_it_only_with_yes(url, capsys):
    storage = LocalStorage(url)
    abandoned = CheckpointRef(25, "00001-00009-dead", "one")
    storage.put(abandoned.prefix + "rank-00000.safetensors", b"half")
    living = CheckpointRef(60, "00002-00009-beef", "one")
    storage.put(living.prefix + "rank-00000.safetensors", b"on its way")
    before = [entry.ref for entry in survey(storage, "one")]
    assert main(runs(url, "prune", "one", "--keep-last", "1", "--json")) == 0
    assert [entry["step"] for entry in json.loads(capsys.readouterr().out)["would_remove"]] == [25]
    assert [entry.ref for entry in survey(storage, "one")] == before
    assert main(runs(url, "prune", "one", "--keep-last", "1", "--yes")) == 0
    assert "removed 4 B" in capsys.readouterr().out
    left = [entry.ref.step for entry in survey(storage, "one")]
    assert left == [10, 20, 30, 40, 50, 60], "verified, best, resumed from, newest, quarantined, being saved"
    storage.delete(layout.verified_key("one"))
    storage.delete(layout.best_key("one"))
    assert main(runs(url, "prune", "one", "--keep-last", "1", "--yes")) == 0
    assert [entry.ref.step for entry in survey(storage, "one")] == [30, 40, 50, 60]


def test_prune_never_removes_the_newest(url, capsys):
    assert main(runs(url, "prune", "one", "--keep-last", "0")) == 2
    assert main(runs(url, "prune", "two", "--yes")) == 0
    assert "nothing to remove" in capsys.readouterr().out
