"""Where the nodes of a job meet, agree who trains together, and learn of each other's ends.

torchrun's c10d rendezvous, with what a cluster needs beside it:

- a node is dead when its heartbeat stands still on *this* node's clock: no two clocks are compared;
- a member that is lost is noticed at once, not only one that joins;
- the store may go away and come back empty: training goes on meanwhile, then everybody saves and meets anew;
- the rendezvous is never "closed", which would lock out the pods that come after; instead the job's end is kept with
  its cause, and every node ends with it.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from typing import Protocol

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend as c10d

from giblet.errors import EXIT_CRASHED, GibletError, StoppedError
from giblet.launch.ending import Ending
from giblet.launch.settings import LaunchSettings
from giblet.launch.torch_rendezvous import Handler
from giblet.telemetry.logs import get_logger
from giblet.training.processes import LOOPBACK
from giblet.training.ranks import Place, host_store

DEFAULTS = {
    "join_timeout": "3600", "last_call_timeout": "10", "keep_alive_interval": "3", "keep_alive_max_attempt": "4",
    "read_timeout": "15",
}  # fmt: skip
"""A lost node is noticed after 12 s, and the others wait 10 s for late ones; torch's own defaults are 15 and 30.

Below the time in which a node that is asked to meet again does so, nodes meet in turns, each alone (seen at 3 s, on a
machine with twenty times the work it could do).
"""
RETRY_SECONDS = 2.0
BARRIER_SECONDS = 30.0
log = get_logger(__name__)


class Change(Enum):
    """What has become of those who train together."""

    JOINING = "a node wants to join"
    LOST = "a node is gone"
    STORE_LOST = "the rendezvous store came back empty"


class Meeting(Protocol):
    """How a node finds the others. Every method but `join` returns quickly."""

    def join(self) -> Place: ...
    def change(self) -> Change | None: ...
    def tell_fault(self, ending: Ending) -> None: ...
    def fault(self) -> Ending | None: ...
    def tell_end(self, ending: Ending) -> None: ...
    def end(self) -> Ending | None: ...
    def finish_together(self) -> None: ...
    def leave(self) -> None: ...


class Alone:
    """One node that waits for nobody."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._store: TCPStore | None = None

    def join(self) -> Place:
        """At once."""
        self._store = host_store(LOOPBACK)
        return Place(LOOPBACK, self._store.port, processes=self._processes)

    def change(self) -> None:
        """Never."""

    def tell_fault(self, ending: Ending) -> None:
        """Nobody listens."""

    def fault(self) -> None:
        """None but our own."""

    def tell_end(self, ending: Ending) -> None:
        """Nobody listens."""

    def end(self) -> None:
        """None but our own."""

    def finish_together(self) -> None:
        """Nobody to wait for."""

    def leave(self) -> None:
        """Nobody to leave."""


class Elastic:
    """The nodes that meet at `settings.endpoint`. `stopping` is asked while waiting; True ends the wait."""

    def __init__(self, settings: LaunchSettings, processes: int, stopping: Callable[[], bool]) -> None:
        assert settings.endpoint is not None
        self._settings, self._processes, self._stopping = settings, processes, stopping
        self._prefix = f"giblet/{settings.job}"
        self._handler: Handler | None = None
        self._world: tuple[int, int] | None = None
        self._group_store: TCPStore | None = None
        self._next_try = 0.0
        self._connected = False

    def join(self) -> Place:
        """Wait for the next round; where this node stands in it.

        Raises `StoppedError` when asked to stop, `EndedError` if the job ended meanwhile, and `GibletError` (128) if
        too few nodes come within the rendezvous' `join_timeout`.
        """
        deadline = time.monotonic() + float(self._conf()["join_timeout"])
        said = 0.0
        while True:
            try:
                if self._handler is None:
                    self._handler = self._connect()
                self._handler.look = self._look
                place = self._meet(self._handler)
                self._handler.look = None
                return place
            except RendezvousTimeoutError:
                raise _crashed(
                    f"fewer than {self._settings.min_nodes} nodes met at {self._settings.endpoint} within "
                    f"{self._conf()['join_timeout']} s",
                    "look at the other workers' pods; nodes.min decides how few go on",
                ) from None
            except (RendezvousError, RuntimeError, OSError) as error:
                self._drop()
                if time.monotonic() > deadline:
                    raise _crashed(
                        f"the rendezvous store at {self._settings.endpoint} does not answer: {error}",
                        "look at the rendezvous pod and its Service",
                    ) from None
                if time.monotonic() - said > 30:
                    said = time.monotonic()
                    log.warning("waiting for the rendezvous store", endpoint=self._settings.endpoint, error=str(error))
                if self._stopping():
                    raise _stopped() from None
                time.sleep(RETRY_SECONDS)

    def change(self) -> Change | None:
        """What has changed since `join`. A store that is away is no change: training does not need it."""
        if self._handler is None:
            return self._try_again()
        try:
            state = self._handler.state_now()
        except (RendezvousError, RuntimeError, OSError) as error:
            log.warning("the rendezvous store is away; training goes on", error=str(error).partition("\n")[0])
            self._drop()
            return None
        assert self._world is not None
        here = {repr(node) for node in state.participants}
        if state.round != self._world[0] or len(here) < self._world[1] or repr(self._handler.node) not in here:
            log.warning("a node is gone", round=state.round, met_in=self._world[0], left=",".join(sorted(here)))
            return Change.LOST  # perhaps this one: then the others went on without it
        return Change.JOINING if state.wait_list else None

    def tell_fault(self, ending: Ending) -> None:
        """Why this node's ranks failed, for those who only saw a connection break. The first to say so is believed."""
        self._put(self._fault_key(), ending)

    def fault(self) -> Ending | None:
        """What another node said of this round."""
        return self._get(self._fault_key())

    def tell_end(self, ending: Ending) -> None:
        """The job is over, for all nodes."""
        self._put(f"{self._prefix}/end", ending)

    def end(self) -> Ending | None:
        """How the job ended; None while it goes on."""
        return self._get(f"{self._prefix}/end")

    def finish_together(self) -> None:
        """Wait until every node's ranks are done: the operator ends all pods as soon as one has succeeded."""
        if self._handler is None or self._world is None:
            return
        key = f"{self._prefix}/done/{self._world[0]}"
        deadline = time.monotonic() + BARRIER_SECONDS
        try:
            done = self._handler.store.add(key, 1)
            while done < self._world[1] and time.monotonic() < deadline and self.end() is None:
                time.sleep(0.2)
                done = self._handler.store.add(key, 0)
        except (RuntimeError, OSError) as error:
            log.warning("the other nodes' ends are not known", error=str(error).partition("\n")[0])

    def leave(self) -> None:
        """Not to be waited for."""
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.leave()

    def _conf(self) -> dict[str, str]:
        return {**DEFAULTS, **self._settings.rendezvous}

    def _connect(self) -> Handler:
        endpoint = self._settings.endpoint or ""
        params = RendezvousParameters(
            "c10d", endpoint, self._settings.job, self._settings.min_nodes, self._settings.max_nodes,
            local_addr=local_address(endpoint), **self._conf(),
        )  # fmt: skip
        backend, store = c10d.create_backend(params)
        if not self._connected:
            self._connected = True
            store.delete_key(f"{self._prefix}/end")  # of a job of this name before: its pods asked for nothing of us
        return Handler(store, backend, params)

    def _meet(self, handler: Handler) -> Place:
        node, nodes = handler.meet()
        number = handler.state.round
        self._world = (number, nodes)
        address = handler.node.addr
        key = f"{self._prefix}/master/{number}/{handler.members}"
        if node == 0:
            self._group_store = host_store(address)
            handler.store.set(key, json.dumps([address, self._group_store.port]))
        master, port = json.loads(handler.store.get(key))
        return Place(master, port, node, nodes, self._processes)

    def _look(self) -> None:
        """While waiting: is there still something to wait for."""
        if self._stopping():
            raise _stopped()
        if (ending := self.end()) is not None:
            raise EndedError(ending)

    def _try_again(self) -> Change | None:
        """The store is away: is it back, and have the others met there without this node."""
        assert self._world is not None
        if time.monotonic() < self._next_try:
            return None
        self._next_try = time.monotonic() + RETRY_SECONDS
        try:
            handler = self._connect()
            went_on = handler.state_now().round > self._world[0]
            handler.leave()
        except (RendezvousError, RuntimeError, OSError):
            return None
        if went_on:  # it was this node that was away: its ranks stand in a collective that the others have left
            return Change.LOST
        return Change.STORE_LOST

    def _drop(self) -> None:
        if self._handler is not None:
            self._handler.stop()
        self._handler, self._next_try = None, time.monotonic() + RETRY_SECONDS

    def _fault_key(self) -> str:
        return f"{self._prefix}/fault/{self._world[0] if self._world else 0}"

    def _put(self, key: str, ending: Ending) -> None:
        try:
            if self._handler is not None:
                self._handler.store.compare_set(key, "", json.dumps(asdict(ending)))
        except (RuntimeError, OSError) as error:
            log.warning("the other nodes could not be told", error=str(error).partition("\n")[0])

    def _get(self, key: str) -> Ending | None:
        try:
            if self._handler is None or not self._handler.store.check([key]):
                return None
            return Ending(**json.loads(self._handler.store.get(key)))
        except (RuntimeError, OSError):
            return None


class EndedError(Exception):
    """The job ended while this node waited to join."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message)
        self.ending = ending


def local_address(endpoint: str) -> str:
    """This node's own address on the way to the endpoint: no name that others would have to resolve."""
    host, _, port = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", "29400")
    family, kind, protocol, _, address = socket.getaddrinfo(host or endpoint, int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])


def _crashed(message: str, remedy: str) -> GibletError:
    error = GibletError(message, remedy=remedy)
    error.exit_code = EXIT_CRASHED
    return error


def _stopped() -> StoppedError:
    return StoppedError("stopped as asked, while waiting for other nodes", remedy="start the same run again to go on")
