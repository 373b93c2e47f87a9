"""`make gpu`: the production model at full size on one 80 GB GPU: real optimizer steps, save, restore, verification.

    .venv/bin/python ci/gpu.py            needs CUDA and 80 GB or more; elsewhere it says so and skips
    .venv/bin/python ci/gpu.py --small    the same code with a small model, on the CPU (what the tests run)

Trains on made-up data of the production shapes, through the same trainer, loader, store and judge as a real run, and
prints one table. Takes about 45 GB of disk and of host memory for the checkpoint; `--folder` says where.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from giblet.config import GibletConfig, load_config
from giblet.data.hrf import hrf_kernel
from giblet.data.manifest import MANIFEST_NAME, ArrayFile, Manifest
from giblet.data.prepared import PreparedDataset, file_sha256
from giblet.models import Dimensions, MultimodalAutoencoder, resolve_dimensions
from giblet.models.build import meta_model
from giblet.training.checkpointing import load_newest, training_tensors
from giblet.training.heartbeat import Heartbeat
from giblet.training.loop import Trainer, open_store
from giblet.training.parallel import join_world
from giblet.training.reporting import serving_metrics
from giblet.training.signals import StopFlag
from giblet.verify import verify

ROOT = Path(__file__).resolve().parent.parent
NEEDED_GPU_BYTES = 78e9
BYTES_A_PARAMETER = 12
"""fp32 weight and two moments."""
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312}
"""Dense bfloat16, from the vendor's data sheets; the first name found in the device's counts."""
SMALL = (
    "model.video_frames=2", "model.video_height=9", "model.video_width=16", "model.audio_codebooks=2",
    "model.audio_frames=12", "model.text_dimension=24", "model.voxels=50", "model.video_hidden=[32,24,16]",
    "model.audio_hidden=[16,12]", "model.text_hidden=[16,12]", "model.encoder_hidden=[32,40]", "model.bottleneck=16",
    "model.voxel_hidden=24", "model.decoder_hidden=[32,24,20,16]", "model.video_decoder_hidden=[20,24]",
    "model.audio_decoder_hidden=[20,20]", "model.text_decoder_hidden=[16,16]", "training.device=cpu",
    "training.precision=fp32",
)  # fmt: skip
TR_SECONDS = 1.5


def main(arguments: list[str] | None = None) -> int:
    """Run it and print the table; 0 if all went well or there is no GPU for it, 1 if verification refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model on the CPU")
    parser.add_argument("--steps", type=int, default=5, help="timed optimizer steps, after one untimed")
    parser.add_argument("--folder", type=Path, help="where data and checkpoint go (removed afterwards)")
    options = parser.parse_args(arguments)
    reason = None if options.small else why_not(options.folder)
    if reason:
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="giblet-gpu-", dir=options.folder) as name:
        rows = check(Path(name), small=options.small, steps=options.steps)
    table = Table("what", "measured", title="giblet on this device")
    for what, measured in rows.items():
        table.add_row(what, measured)
    Console(width=110).print(table)
    return 0 if rows["verification"].startswith("SAFE") else 1


def why_not(folder: Path | None) -> str | None:
    """What this machine lacks; None if nothing."""
    if not torch.cuda.is_available():
        return "no CUDA GPU here; `--small` runs the same code on the CPU"
    memory = torch.cuda.get_device_properties(0).total_memory
    if memory < NEEDED_GPU_BYTES:
        return f"the GPU has {memory / 1e9:.0f} GB, the production model needs {NEEDED_GPU_BYTES / 1e9:.0f} to train"
    free = shutil.disk_usage(folder or tempfile.gettempdir()).free
    if free < 48e9:
        return f"{free / 1e9:.0f} GB of disk are free, the checkpoint needs 48; name another place with --folder"
    return None


def check(folder: Path, *, small: bool, steps: int) -> dict[str, str]:
    """The rows of the table."""
    config = configuration(folder, small)
    dataset = made_up_dataset(folder / "made-up", config)
    rows: dict[str, str] = {}
    with StopFlag() as stop, join_world(config) as world, serving_metrics(config, world) as metrics:
        trainer, rows["build and fill"] = timed(
            lambda: Trainer(config, dataset, world, metrics, stop, Heartbeat()), world.device
        )
        store = open_store(config, metrics)
        trainer.restore(store)
        rows |= measure_steps(trainer, config, dataset, steps)
        scores, rows["validation"] = timed(lambda: trainer.validate(), world.device)
        del scores
        rows |= save_and_restore(trainer, store)
        store.close()
    report, seconds = timed(lambda: verify(f"{config.checkpoint.url}/runs/{config.run.name}"), torch.device("cpu"))
    rows["verification"] = f"{report.verdict}, {report.to_json()['tensors']} tensors, {seconds}"
    return rows


def configuration(folder: Path, small: bool) -> GibletConfig:
    """configs/prod.yaml on one process, with its data and checkpoints in `folder`."""
    overrides = [
        "run.name=gpu-check", "training.processes=1", "training.epochs=1000", "training.warmup_steps=2",
        f"checkpoint.url={folder / 'runs'}", "telemetry.metrics_port=0",
    ]  # fmt: skip
    return load_config(ROOT / "configs/prod.yaml", overrides + (list(SMALL) if small else []))


def measure_steps(trainer: Trainer, config: GibletConfig, dataset: PreparedDataset, steps: int) -> dict[str, str]:
    """Real optimizer steps on real batches: time, share of peak, memory."""
    device = trainer.world.device
    seconds: list[float] = []
    waits: list[float] = []
    losses: list[float] = []
    with trainer.stream() as batches:
        for _ in range(steps + 1):
            start = clock(device)
            result = trainer.step(batches)
            seconds.append(clock(device) - start)
            waits.append(batches.wait_seconds)
            losses.append(result.terms["loss"])
    step = float(np.median(seconds[1:]))
    settings = config.training
    rows = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "parameters": f"{sum(p.numel() for p in trainer.parallel.module.parameters()):,}",
        "step": f"{step:.3f} s, {settings.global_batch_samples} samples of {config.data.segment_trs} TRs in "
        f"micro-batches of {settings.micro_batch_samples}, {settings.precision}",
        "waiting for data": f"{100 * float(np.median(waits[1:])) / step:.1f} % of a step",
        "loss": f"{losses[0]:.3f} → {losses[-1]:.3f} after {len(losses)} steps",
    }
    flops = step_flops(config, dataset)
    peak = next((t for name, t in PEAK_TFLOPS.items() if name in rows["device"]), None)
    share = f", {100 * flops / step / (peak * 1e12):.1f} % of {peak} TFLOP/s" if peak else ""
    rows["arithmetic"] = f"{flops / 1e12:.3g} TFLOP a step, {flops / step / 1e12:.3g} TFLOP/s{share}"
    if device.type == "cuda":
        rows["peak GPU memory"] = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB"
    return rows


def step_flops(config: GibletConfig, dataset: PreparedDataset) -> float:
    """Multiplications and additions of a step's forward and backward passes, counted by torch on the meta device."""
    dimensions = resolve_dimensions(config, Dimensions.of(dataset.manifest.dimensions))
    kernel = hrf_kernel(config, TR_SECONDS)
    context = 0 if kernel is None else len(kernel) - 1
    trs, micro = context + config.data.segment_trs, config.training.micro_batch_samples
    model = meta_model(config, dimensions, hrf_kernel=kernel).to("meta")
    assert isinstance(model, MultimodalAutoencoder)
    target = (torch.arange(trs) >= context).repeat(micro)
    inputs = (
        torch.empty(len(target), *model.video_shape, device="meta"),
        torch.empty(len(target), *model.audio_shape, device="meta"),
        torch.empty(len(target), model.text_dimension, device="meta"),
    )
    counter = FlopCounterMode(display=False)
    with counter:
        outputs = model(*inputs, trs=trs, decode_mask=target)
        torch.stack([value.float().sum() for value in outputs.values() if value.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) * config.training.global_batch_samples / micro


def save_and_restore(trainer: Trainer, store: Any) -> dict[str, str]:
    """A full save, then everything set to zero and read back; compares each tensor's sum."""
    device = trainer.world.device
    tensors = training_tensors(trainer.parallel.module, trainer.optimizer)
    before = {name: value.double().sum().item() for name, value in tensors.items()}
    start = clock(device)
    trainer.save(store)
    stall = clock(device) - start
    store.wait()
    committed = clock(device) - start
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    with torch.no_grad():
        for value in tensors.values():
            value.zero_()
    state, seconds = timed(lambda: load_newest(store, store.latest(), tensors), device)
    wrong = [name for name, value in tensors.items() if value.double().sum().item() != before[name]]
    if wrong or state["step"] != trainer.state.step:
        raise SystemExit(f"restored is not what was saved: {', '.join(wrong[:5]) or 'step'}")
    return {
        "save": f"{size / 1e9:.2f} GB, training stood still {stall:.2f} s, committed after {committed:.1f} s",
        "restore": f"{seconds}, every tensor as saved",
    }


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, str]:
    """What `work` returns, and its seconds in words."""
    start = clock(device)
    result = work()
    return result, f"{clock(device) - start:.1f} s"


def clock(device: torch.device) -> float:
    """Now, after the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def made_up_dataset(folder: Path, config: GibletConfig) -> PreparedDataset:
    """Random stimuli and BOLD of the configured shapes: as many TRs as one step and a validation need."""
    size, training, rng = resolve_dimensions(config), config.training, np.random.default_rng(0)
    train_trs, validation_trs, gap = training.global_batch_samples * config.data.segment_trs, 32, 20
    trs = train_trs + gap + validation_trs
    frames, codes = size.video_frames, size.audio_frames
    arrays = {
        "video": rng.integers(0, 256, (trs, frames, size.video_height, size.video_width, 3), dtype=np.uint8),
        "video_mask": np.ones((trs, frames), bool),
        "audio": rng.integers(0, 1024, (trs, size.audio_codebooks, codes), dtype=np.int16),
        "audio_mask": np.ones((trs, codes), bool),
        "text": rng.standard_normal((trs, size.text_dimension), dtype=np.float32).astype(np.float16),
        "text_mask": np.ones(trs, bool),
        "stimulus_mask": np.ones(trs, bool),
        "bold": rng.standard_normal((trs, size.voxels), dtype=np.float32),
        "bold_mask": np.ones(trs, bool),
    }
    folder.mkdir()
    files = {name: saved(folder, name, array) for name, array in arrays.items()}
    bold = {"sub-01": {"bold": files.pop("bold"), "mask": files.pop("bold_mask")}}
    stimulus = {"file": "made-up", "onset_seconds": 0.0, "duration_seconds": trs * TR_SECONDS}
    entropy = float(np.log(1024))
    manifest = {
        "content_hash": "made-up", "created_by": "ci/gpu.py", "simulated": True, "notes": ["random numbers"],
        "tr_seconds": TR_SECONDS, "settings": {}, "provenance": {"inputs": [], "versions": {}},
        "dimensions": {
            "video_frames": frames, "height": size.video_height, "width": size.video_width,
            "audio_codebooks": size.audio_codebooks, "audio_frames": codes, "text_dimension": size.text_dimension,
            "voxels": size.voxels,
        },
        "subjects": [{"id": "sub-01", "voxels": size.voxels, "first_voxel": 0, "mask": "none"}],
        "presentations": [
            {"id": "made-up", "run": "01", "trs": trs, "stimuli": [stimulus], "arrays": files, "bold": bold}
        ],
        "split": {"train": [(0, 0, train_trs)], "validation": [(0, train_trs + gap, trs)], "test": []},
        "statistics": {
            "video_variance": 1 / 12, "text_variance": 1.0, "bold_variance": 1.0, "audio_code_variance": 1024**2 / 12,
            "audio_unigram_entropy_nats": entropy, "audio_unigram_accuracy": 1 / 1024,
            "audio_unigram_entropy_nats_by_codebook": [entropy] * size.audio_codebooks,
        },
    }  # fmt: skip
    (folder / MANIFEST_NAME).write_text(Manifest.model_validate(manifest).to_json(), encoding="utf-8")
    return PreparedDataset.open(folder)


def saved(folder: Path, name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The manifest's entry of an array, after writing it."""
    path = folder / f"{name}.npy"
    np.save(path, array)
    entry = ArrayFile(file=path.name, shape=array.shape, dtype=str(array.dtype), sha256=file_sha256(path))
    return entry.model_dump(mode="json")


if __name__ == "__main__":
    sys.exit(main())
