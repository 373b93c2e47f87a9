"""From what a run left in storage to the model and the facts in its report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from giblet.checkpoint import CheckpointStore
from giblet.data.prepared import PreparedDataset
from giblet.errors import CheckpointError
from giblet.evaluate.checkpoint import choose_checkpoint, load_model, run_facts
from giblet.models import Dimensions, build_model
from giblet.storage import MemoryStorage
from tests.support.prepared import make_prepared
from tests.support.training import small_config

CONFIG = small_config(data={"segment_trs": 8, "hrf": {"kind": "none"}})
RUN = CONFIG.run.name


def _saved(dataset: PreparedDataset) -> tuple[MemoryStorage, CheckpointStore, dict[int, torch.nn.Module]]:
    """Steps 5, which is the best, and 9."""
    storage = MemoryStorage()
    store = CheckpointStore(storage, RUN, CONFIG.checkpoint)
    store.begin(CONFIG)
    models = {}
    for step in (5, 9):
        torch.manual_seed(step)
        models[step] = build_model(CONFIG, Dimensions.of(dataset.manifest.dimensions))
        tensors = {f"model.{name}": tensor for name, tensor in models[step].state_dict().items()}
        tensors["optimizer.exp_avg.x"] = torch.ones(3)
        state = {"epoch": step // 4, "history": {"train": {"epoch": [1.0]}, "validation": {}}}
        store.save(step, tensors, state, wait=True, best=step == 5)
    return storage, store, models


def test_the_best_is_chosen_unless_a_step_is_named(tmp_path: Path) -> None:
    storage, store, models = _saved(make_prepared(tmp_path))
    store.close()
    assert choose_checkpoint(storage, RUN).step == 5
    assert choose_checkpoint(storage, RUN, 9).step == 9
    with pytest.raises(CheckpointError, match="it has those of steps 5, 9"):
        choose_checkpoint(storage, RUN, 7)
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        choose_checkpoint(storage, "another")
    assert set(models) == {5, 9}


def test_the_model_has_the_weights_that_were_saved(tmp_path: Path) -> None:
    dataset = make_prepared(tmp_path)
    storage, store, models = _saved(dataset)
    store.close()
    model, state = load_model(CONFIG, dataset, storage, choose_checkpoint(storage, RUN, 9))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, models[9].state_dict()[name]), name
    assert state["epoch"] == 2


def test_the_facts_tell_how_each_start_ended(tmp_path: Path) -> None:
    storage, store, _models = _saved(make_prepared(tmp_path))
    store.close()
    again = CheckpointStore(storage, RUN, CONFIG.checkpoint)
    again.begin(CONFIG)
    again.end("done", 0, 12)
    again.close()
    facts = run_facts(storage, choose_checkpoint(storage, RUN), {"epoch": 1, "history": {"train": {"epoch": [1.0]}}})
    assert facts.statements == (
        "Start 1 on 1 process began from nothing; ended without a word (killed).",
        "Start 2 on 1 process resumed from the checkpoint of step 9; done at step 12.",
    )
    assert (facts.step, facts.verdict, facts.history) == (5, None, {"train": {"epoch": [1.0]}})
