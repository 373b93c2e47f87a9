"""EnCodec's convolutions behind a stream's first sample, where nothing is padded, as matrix products.

With time first in memory, each row of samples that a convolution of kernel k and stride s looks at is there already:
rows of s frames, k/s of them one after the other. So it is a sum of k/s matrix products of the same samples, each one
row later, without a copy. Sound goes through in short pieces, so that what the layers make of one stays in the
processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import nn

PIECE_FRAMES = 64
"""So many of the last layer's frames at a time."""

Layer: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From (T, channels) to fewer frames of other channels."""


class Convolution:
    """A `Conv1d` without padding, from (T, C) to ((T - kernel) // stride + 1, C')."""

    def __init__(self, layer: nn.Conv1d) -> None:
        (self.kernel,), (self.stride,) = layer.kernel_size, layer.stride
        step = self.kernel if layer.in_channels == 1 else self.stride
        if self.kernel % step or layer.dilation != (1,) or layer.groups != 1 or layer.bias is None:
            raise NotImplementedError(f"{layer} is no sum of matrix products")
        by_time = layer.weight.detach().permute(2, 1, 0)  # (kernel, C, C')
        self._weights = [part.flatten(0, 1).contiguous() for part in torch.split(by_time, step)]
        self.bias = layer.bias.detach()

    def __call__(self, frames: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """The convolution of `frames`; or, without its bias, added to `onto` in place."""
        count = (len(frames) - self.kernel) // self.stride + 1
        first, *others = self._weights
        rows = self._rows(frames, 0, count)
        made = torch.addmm(self.bias, rows, first) if onto is None else onto.addmm_(rows, first)
        for at, weight in enumerate(others, start=1):
            made.addmm_(self._rows(frames, at, count), weight)
        return made

    def _rows(self, frames: torch.Tensor, at: int, count: int) -> torch.Tensor:
        if frames.shape[1] == 1:
            return frames[:, 0].unfold(0, self.kernel, self.stride)
        return frames[at * self.stride : (at + count) * self.stride].reshape(count, -1)


class _Elu:
    """exp(x) - 1 below 0, to float32's rounding of 1 (6e-8), in half the time of torch's own, which takes `expm1`."""

    kernel = stride = 1

    def __init__(self, layer: nn.ELU, in_place: bool) -> None:
        if layer.alpha != 1:
            raise NotImplementedError(f"{layer} is not the larger of x and exp(x) - 1")
        self._in_place = in_place

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        below = frames.clamp(max=0).exp_().sub_(1)
        return torch.maximum(frames, below, out=frames if self._in_place else below)


class _Residual:
    """A block beside its shortcut, which loses at its beginning what the block's convolutions lose."""

    stride = 1

    def __init__(self, layer: Any) -> None:
        *self._block, self._last = _rows_of(layer.block)
        self._shortcut = Convolution(_convolution(layer.shortcut))
        self._shortcut.bias = self._shortcut.bias + self._last.bias
        self.kernel = 1 + sum(inner.kernel - 1 for inner in (*self._block, self._last))

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        inner = frames
        for layer in self._block:
            inner = layer(inner)
        result: torch.Tensor = self._last(inner, self._shortcut(frames[len(frames) - len(inner) :]))
        return result


class Causal:
    """A package's row of layers without their pads.

    `stride`: samples of the input to one frame of the output; `context`: samples before a frame's own that it sees.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        self._layers = _rows_of(layers)
        self.stride, reach = 1, 1
        for layer in self._layers:
            reach += (layer.kernel - 1) * self.stride
            self.stride *= layer.stride
        self.context = reach - self.stride

    def __call__(self, heard: torch.Tensor) -> torch.Tensor:
        """From (1, C, context + n x stride) to (1, C', n); what it is given stays as it is."""
        samples, piece = heard[0].t().contiguous(), PIECE_FRAMES * self.stride
        starts = range(0, len(samples) - self.context, piece)
        return torch.cat([self._through(samples[at : at + piece + self.context]) for at in starts]).t()[None]

    def _through(self, frames: torch.Tensor) -> torch.Tensor:
        for layer in self._layers:
            frames = layer(frames)
        return frames


def _rows_of(layers: Iterable[Any]) -> list[Any]:
    """What the first layer is given is not its own; the others change theirs in place."""
    return [_layer(layer, in_place=number > 0) for number, layer in enumerate(layers)]


def _layer(layer: Any, in_place: bool) -> Layer:
    if hasattr(layer, "block"):
        return _Residual(layer)
    if isinstance(layer, nn.ELU):
        return _Elu(layer, in_place)
    return Convolution(_convolution(layer))


def _convolution(layer: Any) -> nn.Conv1d:
    return next(inner for inner in layer.modules() if isinstance(inner, nn.Conv1d))
