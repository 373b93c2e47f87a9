"""Many small requests at once: what takes a thousand answers should not wait for them one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
REQUESTS_AT_ONCE = 16
"""As many connections as the S3 client keeps open."""


def each(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Call `work` with every item, some at once. Raises the first error; what has not begun by then is left out."""
    found = list(items)
    if len(found) < 2:
        for item in found:
            work(item)
        return
    with ThreadPoolExecutor(min(REQUESTS_AT_ONCE, len(found)), thread_name_prefix="giblet-requests") as pool:
        try:
            for _ in pool.map(work, found):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
