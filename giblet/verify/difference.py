"""What changed between two checkpoints, tensor by tensor, whatever wrote them and however they are sharded.

Both are read once, a few megabytes of one tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor

from giblet.errors import CheckpointError
from giblet.telemetry.progress import progress
from giblet.verify.sources import Chunk, Source, StoredObject

READ_BYTES = 8 * 1024 * 1024
_SHOWN = 20


@dataclass(slots=True)
class TensorDifference:
    """One tensor of the first checkpoint beside that of the second; elements that are NaN in both count as equal.

    `relative` is ‖second - first‖ / ‖first‖ over the elements that are finite in both; infinite where the first is zero
    and the second is not.
    """

    name: str
    elements: int
    changed: int = 0
    largest: float = 0.0
    first_square: float = 0.0
    change_square: float = 0.0

    @property
    def relative(self) -> float:
        """See above; 0 where nothing changed."""
        if self.change_square == 0.0:
            return 0.0
        return math.sqrt(self.change_square / self.first_square) if self.first_square else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; an infinite `relative` is None."""
        return {
            "name": self.name, "elements": self.elements, "changed": self.changed, "largest": self.largest,
            "relative": self.relative if math.isfinite(self.relative) else None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """Two checkpoints: what both have, what only one has, and what cannot be compared (another shape)."""

    first: Source
    second: Source
    tensors: tuple[TensorDifference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    reshaped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, every tensor in it."""
        return {
            "first": {"url": self.first.url, "step": self.first.step},
            "second": {"url": self.second.url, "step": self.second.step},
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "changed_tensors": sum(tensor.changed > 0 for tensor in self.tensors),
            "only_first": list(self.only_first), "only_second": list(self.only_second),
            "reshaped": list(self.reshaped),
        }  # fmt: skip


def difference(first: Source, second: Source) -> Difference:
    """Compare what both hold. Raises `CheckpointError` where either is incomplete, or stored as strided views."""
    common = [name for name in first.tensors if name in second.tensors]
    reshaped = [name for name in common if first.tensors[name].shape != second.tensors[name].shape]
    strided = [name for name in common if name in first.unordered or name in second.unordered]
    if strided:
        raise CheckpointError(
            f"{strided[0]} is stored as a view with strides, which cannot be compared", remedy="export it first"
        )
    found = {name: TensorDifference(name, first.tensors[name].elements) for name in common if name not in set(reshaped)}
    places: dict[str, list[tuple[StoredObject, Chunk]]] = {}
    for item in second.objects:
        for chunk in item.chunks:
            places.setdefault(chunk.tensor, []).append((item, chunk))
    chunks = [(item, chunk) for item in first.objects for chunk in item.chunks if chunk.tensor in found]
    with progress("compare", total=sum(chunk.stop - chunk.start for _, chunk in chunks), unit="bytes") as bar:
        for item, chunk in chunks:
            for offsets, values in _pieces(first, item, chunk):
                _compare(found[chunk.tensor], values, _box(second, places, chunk.tensor, offsets, values.shape))
                bar.advance(values.nbytes)
    return Difference(
        first, second, tuple(found.values()),
        tuple(name for name in first.tensors if name not in second.tensors),
        tuple(name for name in second.tensors if name not in first.tensors), tuple(reshaped),
    )  # fmt: skip


def _compare(found: TensorDifference, first: Tensor, second: Tensor) -> None:
    one, two = first.double(), second.double()
    found.changed += int(((one != two) & ~(one.isnan() & two.isnan())).sum())
    finite = one.isfinite() & two.isfinite()
    one = torch.where(finite, one, 0.0)
    change = torch.where(finite, two, 0.0) - one
    found.first_square += float(one.square().sum())
    found.change_square += float(change.square().sum())
    found.largest = max(found.largest, float(change.abs().max()) if change.numel() else 0.0)


def _pieces(source: Source, item: StoredObject, chunk: Chunk) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """A chunk, a few rows at a time: where in the tensor they begin, and their values."""
    sizes = chunk.sizes or (1,)
    row = math.prod(sizes[1:]) * source.tensors[chunk.tensor].format().item_bytes
    step = max(1, READ_BYTES // max(row, 1))
    for start in range(0, sizes[0] if row else 0, step):
        values = _rows(source, item, chunk, start, min(start + step, sizes[0]))
        at = (chunk.offsets[0] + start, *chunk.offsets[1:]) if chunk.offsets else ()
        yield at, values if chunk.offsets else values.reshape(())


def _rows(source: Source, item: StoredObject, chunk: Chunk, start: int, stop: int) -> Tensor:
    """Rows `[start, stop)` of a chunk along its first axis."""
    record = source.tensors[chunk.tensor]
    sizes = chunk.sizes or (1,)
    row = math.prod(sizes[1:]) * record.format().item_bytes
    begin = item.begin + chunk.start
    try:
        data = source.storage.get(item.key, begin + start * row, begin + stop * row)
    except KeyError:
        data = b""
    if len(data) != (stop - start) * row:
        raise CheckpointError(f"{source.url}: {item.name} is cut short in {chunk.tensor}", remedy="verify it first")
    dtype: torch.dtype = getattr(torch, record.dtype)
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).view(dtype).reshape(stop - start, *sizes[1:])


def _box(
    source: Source,
    places: dict[str, list[tuple[StoredObject, Chunk]]],
    name: str,
    offsets: tuple[int, ...],
    sizes: tuple[int, ...],
) -> Tensor:
    """A part of a tensor, put together from the chunks that hold it."""
    if not offsets:
        return _rows(source, *places[name][0], 0, 1).reshape(())
    box = torch.empty(sizes, dtype=getattr(torch, source.tensors[name].dtype))
    filled = 0
    for item, chunk in places.get(name, ()):
        low = [max(a, b) for a, b in zip(offsets, chunk.offsets, strict=True)]
        high = [
            min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)
        ]  # fmt: skip
        if any(stop <= start for start, stop in zip(low, high, strict=True)):
            continue
        rows = _rows(source, item, chunk, low[0] - chunk.offsets[0], high[0] - chunk.offsets[0])
        inside = [slice(start - at, stop - at) for start, stop, at in zip(low, high, chunk.offsets, strict=True)]
        target = box[tuple(slice(start - at, stop - at) for start, stop, at in zip(low, high, offsets, strict=True))]
        target.copy_(rows[(slice(None), *inside[1:])])
        filled += target.numel()
    if filled != box.numel():
        raise CheckpointError(f"{source.url}: parts of {name} are missing", remedy="verify it first")
    return box


def render_difference(found: Difference, console: Console) -> None:
    """The tensors that changed most, for a person."""
    for which, source in (("from", found.first), ("to", found.second)):
        step = "" if source.step is None else f", step {source.step:,}"
        console.print(f"{which:<5}[bold]{escape(source.url)}[/bold]{step}", highlight=False)
    changed = sorted((one for one in found.tensors if one.changed), key=lambda one: -one.relative)
    table = Table(
        Column("tensor", overflow="fold", min_width=36), "elements", "changed", "largest change", "relative change",
        box=None, pad_edge=False, header_style="dim",
    )  # fmt: skip
    for one in changed[:_SHOWN]:
        table.add_row(
            escape(one.name), f"{one.elements:,}", f"{one.changed:,}", f"{one.largest:.3g}", f"{one.relative:.3g}"
        )
    if changed:
        console.print(table)
    more = f"; shown are the {_SHOWN} that changed most" if len(changed) > _SHOWN else ""
    console.print(f"{len(changed):,} of {len(found.tensors):,} tensors changed{more}", highlight=False)
    for what, names in (
        ("only in the first", found.only_first), ("only in the second", found.only_second),
        ("of another shape", found.reshaped),
    ):  # fmt: skip
        if names:
            console.print(f"{what}: {len(names):,} tensors, {escape(names[0])} first", highlight=False)
