"""Plans: chunks cover every tensor once, and equal saves plan once."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from giblet.checkpoint.planning import SavePlanner, SavePlans, cover_faults
from giblet.checkpoint.ranks import Ranks
from giblet.errors import CheckpointError


def chunk(offset: tuple[int, ...], size: tuple[int, ...]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offset), torch.Size(size))


@pytest.mark.parametrize(
    ("size", "chunks", "fault"),
    [
        ((4, 6), [((0, 0), (2, 6)), ((2, 0), (2, 6))], None),
        ((4, 6), [((0, 0), (2, 3)), ((0, 3), (2, 3)), ((2, 0), (2, 3)), ((2, 3), (2, 3))], None),
        ((4, 6), [((2, 0), (2, 6)), ((4, 0), (0, 6)), ((0, 0), (2, 6))], None),
        ((), [((), ())], None),
        ((0, 3), [((0, 0), (0, 3))], None),
        ((4, 6), [((0, 0), (2, 6))], "do not add up"),
        ((4, 6), [((0, 0), (2, 6)), ((1, 0), (2, 6))], "overlap"),
        ((4, 6), [((0, 0), (2, 4)), ((0, 2), (2, 4)), ((2, 0), (2, 4))], "overlap"),
        ((4, 6), [((0, 0), (2, 6)), ((3, 0), (2, 6))], "reaches beyond"),
    ],
)
def test_what_does_not_cover_a_tensor_once_is_found(size, chunks, fault) -> None:
    found = list(cover_faults(size, [chunk(*box) for box in chunks]))
    assert (fault in found[0]) if fault else not found


def test_equal_saves_plan_once_and_changed_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    real = SavePlanner.create_global_plan
    monkeypatch.setattr(SavePlanner, "create_global_plan", lambda self, plans: planned.append(1) or real(self, plans))
    plans, ranks = SavePlans(), Ranks()
    first = {"w": torch.zeros(3, 2), "n": torch.tensor(1)}
    plans.make(first, ranks)
    later = {name: tensor.clone() for name, tensor in first.items()}
    made = plans.make(later, ranks)
    assert len(planned) == 1
    assert all(made.planner.resolve_data(item) is later[item.index.fqn] for item in made.plan.items)
    assert {item.index.fqn for item in plans.make({"w": torch.zeros(3, 2)}, ranks).plan.items} == {"w"}
    assert {item.tensor_data.size for item in plans.make({"w": torch.zeros(5)}, ranks).plan.items} == {torch.Size([5])}
    plans.make({"w": torch.zeros(5, dtype=torch.bfloat16)}, ranks)
    assert len(planned) == 4


def test_a_plan_that_failed_is_not_kept() -> None:
    plans, ranks = SavePlans(), Ranks()
    plans.make({"w": torch.zeros(3)}, ranks)
    with pytest.raises(CheckpointError, match="no tensor"):
        plans.make({"w": 3}, ranks)  # type: ignore[dict-item]
    assert plans.make({"w": torch.zeros(3)}, ranks).plan.items[0].index.fqn == "w"


def test_a_thousand_rows_of_long_columns_are_checked_without_comparing_all_pairs() -> None:
    """Where DCP's own check compares half a million pairs."""
    compared = 0

    class Counted(int):
        def __lt__(self, other: int) -> bool:
            nonlocal compared
            compared += 1
            return int(self) < other

    rows = [chunk((row, 0), (1, 9000)) for row in range(1000)]
    for row in rows:
        row.offsets = (Counted(row.offsets[0]), 0)  # type: ignore[assignment]
    assert not list(cover_faults((1000, 9000), rows))
    assert 1000 < compared < 50_000
