"""`make gpu`: at full size where there is a GPU for it, and its twin on the CPU."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ci/gpu.py"
ROWS = ("step", "waiting for data", "arithmetic", "save", "restore", "validation")


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_same_code_on_the_cpu(gpu, tmp_path):
    rows = gpu.check(tmp_path, small=True, steps=2)
    assert set(ROWS) <= set(rows)
    assert rows["parameters"] == "53,674"
    assert rows["restore"].endswith("every tensor as saved")
    assert rows["verification"].startswith("SAFE, 450 tensors")  # 162 of the model, 3 states of 96 parameters


def test_arithmetic_is_that_of_the_matrices(gpu, tmp_path):
    """Two per multiply-add; forward, and backward twice but for the first layers, whose inputs need no gradient."""
    config = gpu.configuration(tmp_path, small=True)
    dataset = gpu.made_up_dataset(tmp_path / "d", config)
    kernel = gpu.hrf_kernel(config, gpu.TR_SECONDS)
    trs, target = 16 + len(kernel) - 1, 16
    macs = 0
    for name, parameter in gpu.meta_model(config, hrf_kernel=kernel).named_parameters():
        if parameter.ndim == 2:
            rows = target if name.startswith("decoder") else trs
            macs += (2 if name.endswith("fc1.weight") else 3) * rows * parameter.numel()
    macs += 2 * trs * trs * config.model.voxel_hidden  # the haemodynamic lag and its gradient
    assert gpu.step_flops(config, dataset) == 2 * macs * config.training.global_batch_samples


def test_without_a_gpu_it_says_what_is_missing_and_skips(gpu, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out.startswith("skipped: no CUDA GPU here")


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_the_production_model_takes_real_steps_on_a_gpu(gpu, tmp_path):
    reason = gpu.why_not(tmp_path)
    if reason:
        pytest.skip(reason)
    rows = gpu.check(tmp_path, small=False, steps=5)
    assert rows["parameters"] == "3,405,302,755"
    assert rows["verification"].startswith("SAFE")
