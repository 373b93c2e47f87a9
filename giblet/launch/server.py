"""`giblet rendezvous`: the store where nodes meet, in a pod of its own, so that no worker is special.

A torch TCPStore server that nobody trains beside. It keeps nothing on disk: when it comes back it is empty, and the
nodes save and meet anew (giblet/launch/meeting.py).
"""

from __future__ import annotations

import datetime
import threading

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from giblet.errors import GibletError
from giblet.telemetry.logs import get_logger
from giblet.training.ranks import asked_to_stop

CHECK_SECONDS = 10.0
PATIENCE = datetime.timedelta(seconds=5)
_ALIVE = "giblet/alive"
log = get_logger(__name__)


def serve_rendezvous(port: int, *, check_seconds: float = CHECK_SECONDS) -> int:
    """Serve until SIGTERM or Ctrl-C; 0. Raises `GibletError` if the port is taken, or the store stops answering."""
    with asked_to_stop() as signals:
        try:
            server = TCPStore("localhost", port, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        except (RuntimeError, OSError) as error:
            raise GibletError(
                f"the rendezvous store cannot listen at port {port}: {error}", remedy="choose another --port"
            ) from None
        log.info("rendezvous store is ready", port=server.port)
        ticks, beat = threading.Event(), 0.0
        while not signals:
            ticks.wait(0.2)
            beat += 0.2
            if beat >= check_seconds:
                beat = 0.0
                _check(server)
        log.info("rendezvous store ends", signal=signals[0])
        return 0


def _check(server: TCPStore) -> None:
    """Through its own front door, as a node would."""
    try:
        server.add(_ALIVE, 1)
    except (RuntimeError, OSError) as error:
        raise GibletError(f"the rendezvous store no longer answers: {error}") from None
