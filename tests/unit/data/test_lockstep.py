"""Several threads' streams through one LSTM."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from giblet.config.schema import AudioConfig
from giblet.data.codec import load_codec
from giblet.data.lockstep import LockStep

WINDOW = 20
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def lstm():
    return load_codec(AudioConfig(weights="random")).lstm


def sounds(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 1, 512, generator=generator) for length in lengths]


def listen(together, hidden):
    """A stream's outputs, window by window."""
    state, outputs = None, []
    with together.stream():
        for window in hidden.split(WINDOW):
            output, state = together.put(window, state).result(PATIENCE_SECONDS)
            outputs.append(output)
    return torch.cat(outputs), state


def all_at_once(together, streams):
    with ThreadPoolExecutor(len(streams)) as pool:
        return [future.result(PATIENCE_SECONDS) for future in [pool.submit(listen, together, s) for s in streams]]


def same(one, other):
    return torch.equal(one[0], other[0]) and all(map(torch.equal, one[1], other[1]))


def test_it_is_the_lstm(lstm):
    (heard,) = sounds(70)
    wanted, state = lstm(heard)
    for columns in (1, 3):
        output, ended = listen(LockStep(lstm, columns), heard)
        torch.testing.assert_close(output, wanted)
        torch.testing.assert_close(ended, state)


def test_a_stream_is_the_same_to_the_bit_whichever_others_there_are(lstm):
    """Of several lengths, so that some end while others go on, and their last windows are shorter."""
    streams = sounds(5 * WINDOW, 70, 2 * WINDOW, 7)
    alone = [listen(LockStep(lstm, 4), stream) for stream in streams]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 0]):
        together = all_at_once(LockStep(lstm, 4), [streams[index] for index in order])
        assert all(same(one, alone[index]) for one, index in zip(together, order, strict=True))


class Counted(nn.Module):
    """An LSTM that remembers how many columns of each pass were not empty."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm, self.num_layers, self.hidden_size, self.used = lstm, lstm.num_layers, lstm.hidden_size, []

    def forward(self, inputs, state):
        self.used.append(int((inputs.abs().sum(dim=(0, 2)) > 0).sum()))
        return self.lstm(inputs, state)


def test_streams_that_began_take_every_pass_together(lstm):
    counted, begun = Counted(lstm), threading.Barrier(3)
    together = LockStep(counted, 3)

    def wait_and_listen(hidden):
        with together.stream():
            begun.wait(PATIENCE_SECONDS)
            state = None
            for window in hidden.split(WINDOW):
                _, state = together.put(window, state).result(PATIENCE_SECONDS)

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(wait_and_listen, hidden) for hidden in sounds(80, 80, 40)]:
            future.result(PATIENCE_SECONDS)
    assert counted.used == [3, 3, 2, 2]


def test_a_stream_that_ends_badly_holds_nobody_up(lstm):
    together, begun = LockStep(lstm, 2), threading.Barrier(2)
    (hidden,) = sounds(60)

    def fail():
        with together.stream():
            begun.wait(PATIENCE_SECONDS)
            raise OSError("the film broke off")

    def go_on():
        with together.stream():
            begun.wait(PATIENCE_SECONDS)
            return together.put(hidden, None).result(PATIENCE_SECONDS)

    with ThreadPoolExecutor(2) as pool:
        bad, good = pool.submit(fail), pool.submit(go_on)
        assert len(good.result(PATIENCE_SECONDS)[0]) == 60
        with pytest.raises(OSError, match="broke off"):
            bad.result(PATIENCE_SECONDS)


def test_what_goes_wrong_in_the_lstm_is_told_to_every_stream(lstm):
    class Broken(Counted):
        def forward(self, inputs, state):
            raise MemoryError("no room")

    together, begun = LockStep(Broken(lstm), 2), threading.Barrier(2)

    def listen_in_vain(hidden):
        with together.stream():
            begun.wait(PATIENCE_SECONDS)
            together.put(hidden, None).result(PATIENCE_SECONDS)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(listen_in_vain, hidden) for hidden in sounds(20, 20)]:
            with pytest.raises(MemoryError, match="no room"):
                future.result(PATIENCE_SECONDS)


def test_a_thread_that_handed_in_its_window_need_not_wait(lstm):
    """A window whose thread has gone away is heard all the same."""
    together = LockStep(lstm, 2)
    mine, other = sounds(WINDOW, WINDOW)
    with together.stream(), together.stream():
        first = together.put(mine, None)
        assert not first.done()
        second = together.put(other, None)
        first.result(PATIENCE_SECONDS)
        second.result(PATIENCE_SECONDS)
        left = together.put(mine, None)
        assert not left.done()
    assert torch.equal(left.result(PATIENCE_SECONDS)[0], first.result()[0])
