"""How many processors there are for us."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Those that this process may run on, which are not all of the machine's in a pod with pinned ones."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
