"""Reads checkpoints back and says whether they can be trusted. Never imports what wrote them.

    report = verify("s3://bucket/runs/movie", restore=True)
    render(report, Console())

`judge` is the way in; `stream` reads, hashes and measures the bytes; `checks`, `consistency` and `restoring` judge;
`gate` does it for a run in a cluster while it trains.
"""

from giblet.verify.judge import verify
from giblet.verify.pointer import record, update_pointer
from giblet.verify.report import Check, Report, render

__all__ = ["Check", "Report", "record", "render", "update_pointer", "verify"]
