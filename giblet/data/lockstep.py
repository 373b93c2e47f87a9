"""One LSTM for several streams, which go through it together.

For one stream an LSTM is bound by memory: each of its steps reads all of the weights (16 MB in EnCodec's) for a single
column. Streams that take their steps together read them once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

State = tuple[torch.Tensor, torch.Tensor]
"""(hidden, cell), each (layers, 1, H)."""


@dataclass(slots=True)
class _Window:
    """What a thread waits with, and what comes of it: one of `result` and `error`."""

    inputs: torch.Tensor
    state: State | None
    result: tuple[torch.Tensor, State] | None = None
    error: BaseException | None = None


class LockStep:
    """Windows of at most `columns` threads' streams through one LSTM, as the columns of a batch.

    A batch always has that many columns, zeros where there is no stream, so that what comes of a stream does not depend
    on which others are there.
    """

    def __init__(self, lstm: nn.LSTM, columns: int = 1) -> None:
        self._lstm, self._columns = lstm, columns
        self._turn = threading.Condition()
        self._streams = 0
        self._waiting: list[_Window] = []

    @contextmanager
    def stream(self) -> Iterator[None]:
        """While a thread is in here the others wait for its windows."""
        with self._turn:
            self._streams += 1
        try:
            yield
        finally:
            with self._turn:
                self._streams -= 1
                self._go_on()

    def __call__(self, inputs: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """A window (T, 1, H) of a stream and its state before, None at its beginning: outputs and state behind it.

        Returns once every open stream has come with a window or has ended. An error is raised in every thread.
        """
        mine = _Window(inputs, state)
        with self._turn:
            self._waiting.append(mine)
            self._go_on()
            self._turn.wait_for(lambda: mine.result is not None or mine.error is not None)
        if mine.result is None:
            raise RuntimeError("the LSTM failed") from mine.error
        return mine.result

    def _go_on(self) -> None:
        """Let the windows through if nobody is missing; those of one length go together."""
        if not self._waiting or len(self._waiting) < self._streams:
            return
        waiting, self._waiting = self._waiting, []
        for length in sorted({len(window.inputs) for window in waiting}):
            alike = [window for window in waiting if len(window.inputs) == length]
            for first in range(0, len(alike), self._columns):
                self._pass(alike[first : first + self._columns])
        self._turn.notify_all()

    def _pass(self, windows: list[_Window]) -> None:
        try:
            with torch.inference_mode():
                outputs, (hidden, cell) = self._lstm(*self._batch(windows))
                for column, window in enumerate(windows):
                    one = slice(column, column + 1)
                    window.result = outputs[:, one], (hidden[:, one].contiguous(), cell[:, one].contiguous())
        except BaseException as error:
            for window in windows:
                window.error, window.result = error, None

    def _batch(self, windows: list[_Window]) -> tuple[torch.Tensor, State]:
        first = windows[0].inputs
        inputs = first.new_zeros(len(first), self._columns, first.shape[2])
        states = first.new_zeros(2, self._lstm.num_layers, self._columns, self._lstm.hidden_size)
        for column, window in enumerate(windows):
            inputs[:, column] = window.inputs[:, 0]
            if window.state is not None:
                states[:, :, column] = torch.stack(window.state)[:, :, 0]
        return inputs, (states[0], states[1])
