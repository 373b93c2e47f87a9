"""`giblet logs`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from giblet.commands.common import Verbs, config_arguments, config_of


def add(verbs: Verbs) -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "logs",
        help="what a run's pods printed, from storage",
        description="Shows the log of a run's newest start, from every pod, as `giblet launch` keeps it in storage: "
        "also when the pods are gone. A log is written there each minute, so kubectl logs is fresher.",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's name, or <checkpoint.url>/runs/NAME (run.name)")
    config_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--start", type=int, metavar="N", help="of this start; 0: before any was claimed (the newest)")
    which.add_argument("--all", action="store_true", help="of every start, oldest first")
    parser.add_argument("--pod", metavar="NAME", help="of this pod only")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the run has ended")
    parser.set_defaults(verb=_logs)


def _logs(options: argparse.Namespace) -> int:
    from giblet.commands.runs import locate
    from giblet.launch.kept import KeptLog, follow, list_logs
    from giblet.storage.embedded import embedded_if_asked

    config = config_of(options)
    with embedded_if_asked(config.checkpoint):
        storage, run = locate(options.run or config.run.name, config)
        found = list_logs(storage, run, options.start)
        if options.start is None and not options.all:
            found = [log for log in found if log.start == found[-1].start]
        several = len({log.pod for log in found}) > 1
        pieces: Iterable[tuple[KeptLog, bytes]]
        if options.follow:
            pieces = follow(storage, run, options.start)
        else:
            pieces = ((log, storage.get(log.key)) for log in found)
        try:
            for log, body in pieces:
                if options.pod in (None, log.pod):
                    _print(body, f"[{log.start}/{log.pod}] " if several or options.all or options.follow else "")
        except BrokenPipeError:  # `giblet logs … | head`
            sys.stderr.close()
    return 0


def _print(body: bytes, prefix: str) -> None:
    for line in body.decode(errors="replace").splitlines():
        sys.stdout.write(f"{prefix}{line}\n")
    sys.stdout.flush()
