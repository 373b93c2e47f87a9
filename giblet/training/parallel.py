"""Ranks, devices, and how several ranks share one model. The same code for 1 process and 8, gloo and nccl."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from giblet.config.schema import GibletConfig, TrainingConfig
from giblet.errors import ConfigError
from giblet.models import MultimodalAutoencoder
from giblet.models.initialise import initialise
from giblet.processors import usable_processors


@dataclass(frozen=True, slots=True)
class World:
    """Who this process is among those that train. `rank` is global; `local_rank` counts within the node."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def choose_device(settings: TrainingConfig, local_rank: int) -> torch.device:
    """The device of this rank. Raises `ConfigError` if CUDA is asked for and absent."""
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise ConfigError("training.device is cuda, but there is no usable GPU here", remedy="set it to auto or cpu")
    if settings.device == "cpu" or not has_cuda:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} has no GPU of its own: this machine shows {torch.cuda.device_count()}",
            remedy="start one process a GPU (training.processes)",
        )
    return torch.device("cuda", local_rank)


@contextmanager
def join_world(config: GibletConfig) -> Iterator[World]:
    """Join the processes that torchrun started, or be the only one. Leaves the group again at the end.

    Raises `ConfigError` before anything heavy if there are more ranks than micro-batches in a step.
    """
    rank, size, local_rank = _environment("RANK", 0), _environment("WORLD_SIZE", 1), _environment("LOCAL_RANK", 0)
    check_world_size(size, config.training)
    device = choose_device(config.training, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif size > 1:
        # torchrun sets one thread a process unless it is told otherwise; a lone process keeps torch's own choice.
        torch.set_num_threads(max(1, usable_processors() // _environment("LOCAL_WORLD_SIZE", size)))
    if size > 1:
        if device.type == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
    try:
        yield World(rank, size, local_rank, device)
    finally:
        if size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def check_world_size(size: int, settings: TrainingConfig) -> None:
    """Raise `ConfigError` if there are more ranks than micro-batches in a step; any smaller number shares them."""
    micro_batches = settings.global_batch_samples // settings.micro_batch_samples
    if size > micro_batches:
        raise ConfigError(
            f"{size} ranks are more than the {micro_batches} micro-batches of a step "
            f"(training.global_batch_samples {settings.global_batch_samples} / training.micro_batch_samples "
            f"{settings.micro_batch_samples})",
            remedy="use fewer ranks, or raise training.global_batch_samples, or lower training.micro_batch_samples",
        )


@dataclass(frozen=True, slots=True)
class ParallelModel:
    """A model as this rank trains it."""

    module: MultimodalAutoencoder
    """The model itself, with its own names; its parameters are DTensors where they are sharded."""
    forward: Callable[..., dict[str, Tensor]]
    """What to call in training."""
    accumulate: Callable[[bool], AbstractContextManager[None]]
    """`with accumulate(last)` around a micro-batch: gradients are exchanged after the last one only."""


def parallelise(model: MultimodalAutoencoder, world: World, config: GibletConfig) -> ParallelModel:
    """Fill a model that was built on the meta device, and share it among the ranks.

    FSDP2 shards parameters, gradients and optimizer state over all ranks, one part of the network at a time, so that
    no rank ever holds more than its shard and one part. DDP keeps a copy on each rank.
    """
    seed = config.run.seed
    if world.size > 1 and config.training.sharding == "fsdp":
        return _sharded(model, world, config.training, seed)
    model.to_empty(device=world.device)
    initialise(model, seed)
    if world.size == 1:
        return ParallelModel(model, model, lambda last: nullcontext())
    devices = [world.device] if world.device.type == "cuda" else None
    # Buffers are statistics that every rank computes alike; they need no exchange. The argument has two names.
    parameters = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "bucket_cap_mb": 100, sync_buffers: False}
    copies = DistributedDataParallel(model, device_ids=devices, **options)
    return ParallelModel(model, copies, lambda last: nullcontext() if last else copies.no_sync())


def _sharded(model: MultimodalAutoencoder, world: World, settings: TrainingConfig, seed: int) -> ParallelModel:
    # The logits come back transposed, as a view; nobody writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    bf16 = settings.precision == "bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,
    )
    for name, part in parts(model):
        part.to_empty(device=world.device)
        initialise(part, seed, name)
        fully_shard(part, mesh=mesh, mp_policy=policy)
    sharded = fully_shard(model, mesh=mesh, mp_policy=policy)
    assert isinstance(sharded, FSDPModule)

    @contextmanager
    def accumulate(last: bool) -> Iterator[None]:
        sharded.set_requires_gradient_sync(last)
        yield

    return ParallelModel(model, model, accumulate)


def parts(model: MultimodalAutoencoder) -> Iterator[tuple[str, nn.Module]]:
    """The parts of the network that are gathered and freed as one: the children of encoder and decoder."""
    for side in ("encoder", "decoder"):
        for name, part in model.get_submodule(side).named_children():
            if any(True for _ in part.parameters()):
                yield f"{side}.{name}", part


def full(value: Tensor) -> Tensor:
    """A DTensor's whole value; a plain tensor as it is."""
    whole = getattr(value, "full_tensor", None)
    return value if whole is None else whole()
