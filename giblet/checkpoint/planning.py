"""Who writes which chunk: DCP's plan, each chunk once, however many ranks hold it; made once for a run of equal saves.

Planning sends all chunks of all ranks to the first one while training waits: at 1,024 ranks and 70 billion parameters
2.2 million of them (docs/scale.md). So it is kept, and each save only asks whether anybody's tensors changed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan

from giblet.checkpoint import layout
from giblet.checkpoint.ranks import Ranks
from giblet.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Planned:
    """What this rank has to write. `metadata` is DCP's view of the whole, on the first rank only."""

    planner: DefaultSavePlanner
    plan: SavePlan
    metadata: Metadata | None
    key: str


class SavePlans:
    """DCP's plan, deduplicated over all ranks; kept, and made again only when some rank's tensors changed.

    Making it costs the first rank a message of all chunks from every rank, and training waits meanwhile.
    """

    def __init__(self) -> None:
        self._local: SavePlan | None = None
        self._final = SavePlan([])
        self._metadata: Metadata | None = None

    def make(self, tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> Planned:
        """The plan for `tensors` (collective). Raises `CheckpointError` for what is no tensor, or does not fit."""
        planner = SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)

        def local_plan() -> SavePlan:
            for name, tensor in tensors.items():
                if not isinstance(tensor, torch.Tensor):
                    raise CheckpointError(
                        f"{name}: a {type(tensor).__name__} is no tensor", remedy="put plain values into the state"
                    )
            planner.set_up_planner(dict(tensors), is_coordinator=ranks.is_first)
            return planner.create_local_plan()

        local = ranks.on_all(local_plan)
        if not all(ranks.all_gather(local == self._local)):
            self._local = None  # should planning fail, nothing of it is kept
            self._final = self._agree(planner, local, ranks)
            self._local = local
        return Planned(planner, planner.finish_plan(self._final), self._metadata, layout.shard_name(ranks.rank))

    def _agree(self, planner: SavePlanner, local: SavePlan, ranks: Ranks) -> SavePlan:
        plans = ranks.to_first(lambda: local)
        split: list[SavePlan] | None = None

        def global_plan() -> None:
            nonlocal split
            assert plans is not None
            try:
                split, metadata = planner.create_global_plan(plans)
            except ValueError as error:
                raise CheckpointError(f"the ranks' tensors do not fit together: {error}") from None
            self._metadata = without_chunks(metadata)

        ranks.on_first(global_plan)
        return ranks.scatter(split)


def without_planner(planned: Planned) -> Planned:
    """The plan alone: keeps no tensor of training alive while it is uploaded."""
    return replace(planned, planner=DefaultSavePlanner())


class SavePlanner(DefaultSavePlanner):
    """DCP's planner, with a check of the whole that takes 1,024 chunks of a tensor in their stride.

    DCP's own sweeps along a tensor's longest dimension and compares all chunks that meet there: with rows dealt to N
    ranks and columns longer than rows, N² / 2 comparisons a tensor.
    """

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """See DCP. Raises `ValueError` for chunks that do not cover each tensor exactly once."""
        plans, metadata = create_default_global_save_plan(self._dedup_save_plans(all_plans))
        tensors = metadata.state_dict_metadata.items()
        faults = (
            f"{name}: {fault}"
            for name, tensor in tensors
            if isinstance(tensor, TensorStorageMetadata)
            for fault in cover_faults(tuple(tensor.size), tensor.chunks)
        )
        if found := list(itertools.islice(faults, 5)):
            raise ValueError("; ".join(found))
        self.global_plan, self.metadata = plans, metadata
        return plans, metadata


def cover_faults(size: tuple[int, ...], chunks: Sequence[ChunkStorageMetadata]) -> Iterator[str]:
    """What keeps boxes from covering a tensor of `size` exactly once."""
    boxes = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks]
    boxes = [(offset, shape) for offset, shape in boxes if math.prod(shape)]
    for offset, shape in boxes:
        if any(o + s > n for o, s, n in zip(offset, shape, size, strict=True)):
            yield f"the chunk of {list(shape)} at {list(offset)} reaches beyond {list(size)}"
    if sum(math.prod(shape) for _, shape in boxes) != math.prod(size):
        yield f"its {len(boxes)} chunks do not add up to {list(size)}"
    if len(boxes) < 2:
        return
    along = max(range(len(size)), key=lambda dimension: len({offset[dimension] for offset, _ in boxes}))
    reaching: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for offset, shape in sorted(boxes, key=lambda box: box[0][along]):
        reaching = [box for box in reaching if box[0][along] + box[1][along] > offset[along]]
        for other, extent in reaching:
            if all(o < p + e and p < o + s for o, s, p, e in zip(offset, shape, other, extent, strict=True)):
                yield f"the chunks at {list(offset)} and {list(other)} overlap"
        reaching.append((offset, shape))


def without_chunks(metadata: Metadata) -> Metadata:
    """Names, types and shapes alone: of 2.2 million chunks the manifest's are enough."""
    return Metadata(
        {
            name: replace(entry, chunks=[]) if isinstance(entry, TensorStorageMetadata) else entry
            for name, entry in metadata.state_dict_metadata.items()
        }
    )
