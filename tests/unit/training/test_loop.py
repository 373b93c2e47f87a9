"""The loop in one process: resume, early stopping, saves, ends. Several processes: tests/integration."""

import json
import os
import signal

import pytest
import torch

from giblet.checkpoint import CheckpointRef
from giblet.errors import CheckpointError, ConfigError, StoppedError
from giblet.training import train
from giblet.training.checkpointing import load_newest, save_due
from giblet.training.loop import Trainer
from giblet.training.validate import Validation
from tests.support.prepared import make_prepared
from tests.support.training import MemoryStore, small_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("loop") / "d")


def run(dataset, config, store=None):
    store = MemoryStore() if store is None else store
    return train(config, dataset_path=dataset.path, make_store=lambda *_: store), store


def test_resumed_from_any_save_equals_uninterrupted_bit_for_bit(dataset):
    config = small_config(checkpoint={"save_every_steps": 1})
    whole, store = run(dataset, config)
    assert sorted(store.kept) == [1, 2, 3, 4, 5, 6]
    for step in (1, 2, 3, 5):
        again = MemoryStore({step: store.kept[step]})
        resumed, _ = run(dataset, config, again)
        assert resumed == whole
        (tensors, state), (expected, expected_state) = again.kept[6], store.kept[6]
        assert json.loads(state) == json.loads(expected_state)
        assert tensors.keys() == expected.keys()
        differ = [name for name in expected if not torch.equal(tensors[name], expected[name])]
        assert not differ, f"after {step}: {differ[:5]}"


def test_it_learns(dataset):
    config = small_config(training={"epochs": 50, "learning_rate": 1e-2}, model={"norm": "layer", "dropout_scale": 0.0})
    result, _ = run(dataset, config)
    losses = result.history["train"]["bold"]
    assert losses[-1] < 0.8 * losses[0], losses


def test_the_checkpoint_holds_the_memory_of_its_own_step(dataset):
    config = small_config(checkpoint={"save_every_epochs": 2, "save_best": True}, training={"epochs": 4})
    result, store = run(dataset, config)
    for step, (_, text) in store.kept.items():
        state = json.loads(text)
        assert (state["step"], state["epoch"], state["samples_consumed"]) == (step, step // 2, step * 4)
        assert state["validation"]["step"] == step
        scores = state["history"]["validation"]
        assert state["best"]["score"] == min(scores["loss"])
        assert state["best"]["step"] == scores["step"][scores["loss"].index(min(scores["loss"]))]
        assert state["history"]["train"]["epoch"] == list(range(1, step // 2 + 1))
        assert state["schedule"]["total_steps"] == 8
        assert state["config"] == config.model_dump(mode="json")
    best_epochs = [step for step, (_, text) in store.kept.items() if json.loads(text)["best"]["step"] == step]
    assert [step for step, _, best in store.saves if best] == best_epochs
    assert {4, 8} <= set(store.kept)
    assert store.saves[-1][0] == 8
    assert store.ends == [("done", 0, 8)]
    assert result.reason == "epochs"


def test_early_stopping_remembers_its_patience_across_a_resume(dataset, monkeypatch):
    scripted = {1: 5.0, 2: 4.0, 3: 4.5, 4: 4.6, 5: 4.7, 6: 4.8}

    def validation(self, parallel, on_batch):
        terms = dict.fromkeys(("bold", "video", "audio", "text", "bold_correlation", "token_accuracy"), 0.0)
        return {"loss": next(scores), **terms}

    scores = iter(scripted.values())
    monkeypatch.setattr(Validation, "__call__", validation)
    config = small_config(training={"epochs": 50, "patience_epochs": 3})
    whole, store = run(dataset, config)
    assert (whole.reason, whole.epoch, whole.best.epoch, whole.best.score) == ("early stopping", 5, 2, 4.0)
    scores = iter(list(scripted.values())[3:])
    resumed, _ = run(dataset, config, MemoryStore({6: store.kept[6]}))
    assert (resumed.reason, resumed.epoch, resumed.best.epoch) == ("early stopping", 5, 2)
    done, _ = run(dataset, config, store)  # nothing left to do
    assert done == whole


def test_max_steps_ends_mid_epoch_with_a_validated_save(dataset):
    result, store = run(dataset, small_config(training={"max_steps": 3}))
    assert (result.step, result.reason) == (3, "max_steps")
    assert result.validation["step"] == 3
    assert store.saves[-1] == (3, True, result.best.step == 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_after_the_step(dataset, monkeypatch, number):
    original = Trainer.step
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def step(self, batches):
        if self.state.step == 2:
            os.kill(os.getpid(), number)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "step", step)
    store = MemoryStore()
    config = small_config(checkpoint={"save_every_epochs": 100})
    with pytest.raises(StoppedError, match="after step 3 of 6; saved") as caught:
        run(dataset, config, store)
    assert caught.value.exit_code == 143
    assert store.saves == [(3, True, False)]
    assert store.ends == [("stopped", 143, 3)]
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    monkeypatch.setattr(Trainer, "step", original)
    resumed, _ = run(dataset, config, store)
    assert resumed == run(dataset, config)[0]


def test_other_data_than_the_checkpoint_s_is_refused(dataset, tmp_path):
    _, store = run(dataset, small_config(training={"max_steps": 1}))
    other = make_prepared(tmp_path / "other")
    with pytest.raises(CheckpointError, match="trained on the prepared dataset d, not on other"):
        run(other, small_config(training={"max_steps": 2}), store)
    assert store.ends[-1] == ("checkpoint", 66, 0)


def test_faults_are_told_before_anything_heavy(dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match=r"5 ranks are more than the 4 micro-batches"):
        run(dataset, small_config())
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match=r"8 training samples, fewer than training.global_batch_samples 16"):
        run(dataset, small_config(training={"global_batch_samples": 16}))
    with pytest.raises(ConfigError, match=r"model.voxels is 5"):
        run(dataset, small_config(model={"voxels": 5}))


def test_saves_are_due_by_step_by_epoch_and_for_the_best():
    def due(**settings):
        checkpoint = small_config(checkpoint={"save_every_epochs": 0, "save_every_steps": 0, **settings}).checkpoint
        return [s for s in range(1, 13) if save_due(checkpoint, s, 4, improved=s == 7)]

    assert due(save_every_steps=5) == [5, 10]
    assert due(save_every_epochs=2) == [8]
    assert due(save_every_epochs=1, save_every_steps=6, save_best=True) == [4, 6, 7, 8, 12]


class Shelf:
    """Loads only what is not damaged; `latest` knows what it quarantined."""

    def __init__(self, *damaged):
        self.refs, self.damaged = [CheckpointRef(s, "a", "r") for s in (2, 4, 6)], damaged

    def load(self, ref, tensors):
        if ref.step in self.damaged:
            self.refs.remove(ref)
            raise CheckpointError("damaged")
        return {"step": ref.step}

    def latest(self):
        return self.refs[-1] if self.refs else None


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before():
    newest = CheckpointRef(6, "a", "r")
    assert load_newest(Shelf(), newest, {}) == {"step": 6}
    assert load_newest(Shelf(6, 4), newest, {}) == {"step": 2}
    with pytest.raises(CheckpointError, match="damaged"):
        load_newest(Shelf(2, 4, 6), newest, {})


def test_fir_kernels_and_several_micro_batch_samples_train_too(dataset):
    config = small_config(
        data={"hrf": {"kind": "fir", "duration_seconds": 6.0}},
        training={"micro_batch_samples": 2, "loader_workers": 0, "precision": "bf16"},
        model={"audio_objective": "regress"},
    )
    result, store = run(dataset, config)
    assert result.step == 6
    kernels = store.kept[6][0]["model.encoder.bottleneck_to_voxels.hrf_kernel"]
    assert kernels.shape == (12, 4)
    assert kernels.std(0).gt(0).all()
    assert all(value.dtype == torch.float32 for name, value in store.kept[6][0].items() if "num_batches" not in name)
