"""One LSTM for several streams, which go through it together.

For one stream an LSTM is bound by memory: each of its steps reads all of the weights (16 MB in EnCodec's) for a single
column. Streams that take their steps together read them once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

State: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""(hidden, cell), each (layers, 1, H)."""

Made: TypeAlias = tuple[torch.Tensor, State]
"""A window's outputs (T, 1, H), and the state behind it."""


@dataclass(slots=True)
class _Window:
    inputs: torch.Tensor
    state: State | None
    made: Future[Made] = field(default_factory=Future)


class LockStep:
    """Windows of at most `columns` threads' streams through one LSTM, as the columns of a batch.

    A batch always has that many columns, zeros where there is no stream, so that what comes of a stream does not depend
    on which others are there. `core` is held while it computes.
    """

    def __init__(self, lstm: nn.LSTM, columns: int = 1, core: AbstractContextManager[Any] | None = None) -> None:
        self._lstm, self._columns = lstm, columns
        self._core = core if core is not None else nullcontext()
        self._lock = threading.Lock()
        self._streams = 0
        self._waiting: list[_Window] = []
        self._worker = ThreadPoolExecutor(1, "lstm")

    @contextmanager
    def stream(self) -> Iterator[None]:
        """While a thread is in here the others' windows wait for its own."""
        with self._lock:
            self._streams += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams -= 1
            self._go_on()

    def put(self, inputs: torch.Tensor, state: State | None) -> Future[Made]:
        """Hand in a window (T, 1, H) of a stream and its state before, None at its beginning.

        All go through as soon as the last one is there, in a thread of their own, so that a stream can do something
        else meanwhile. What goes wrong there is raised to each that asks for its result.
        """
        window = _Window(inputs, state)
        with self._lock:
            self._waiting.append(window)
        self._go_on()
        return window.made

    def _go_on(self) -> None:
        """Let the windows through if nobody is missing; those of one length go together."""
        with self._lock:
            if len(self._waiting) < self._streams:
                return
            waiting, self._waiting = self._waiting, []
        for length in sorted({len(window.inputs) for window in waiting}):
            alike = [window for window in waiting if len(window.inputs) == length]
            for first in range(0, len(alike), self._columns):
                self._worker.submit(self._pass, alike[first : first + self._columns])

    def _pass(self, windows: list[_Window]) -> None:
        try:
            with self._core, torch.inference_mode():
                outputs, (hidden, cell) = self._lstm(*self._batch(windows))
                for column, window in enumerate(windows):
                    one = slice(column, column + 1)
                    state = hidden[:, one].contiguous(), cell[:, one].contiguous()
                    window.made.set_result((outputs[:, one], state))
        except BaseException as error:
            for window in windows:
                if not window.made.done():
                    window.made.set_exception(error)

    def _batch(self, windows: list[_Window]) -> tuple[torch.Tensor, State]:
        first = windows[0].inputs
        inputs = first.new_zeros(len(first), self._columns, first.shape[2])
        states = first.new_zeros(2, self._lstm.num_layers, self._columns, self._lstm.hidden_size)
        for column, window in enumerate(windows):
            inputs[:, column] = window.inputs[:, 0]
            if window.state is not None:
                states[:, :, column] = torch.stack(window.state)[:, :, 0]
        return inputs, (states[0], states[1])
