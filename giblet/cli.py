"""The command line: one subcommand a verb. Heavy imports happen inside a verb, so that `--help` is quick.

Results go to standard output (with `--json` for scripts), everything else to standard error. A `GibletError` ends
the process with its own exit code (giblet/errors.py) and one message.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from typing import TypeAlias

import giblet
from giblet.commands import config, data, gate, launch, preflight, runs, training, verify
from giblet.commands import logs as logs_verb
from giblet.errors import GibletError, OutOfSpaceError, StoppedError
from giblet.telemetry import logs

Verb: TypeAlias = Callable[[argparse.Namespace], int]
OBJECTS_BEFORE_COLLECTION = 50_000
EPILOG = """\
exit codes: 0 done · 1 UNSAFE · 2 configuration · 65 data · 66 no such checkpoint · 69 something to install ·
74 disk full · 75 run name taken · 76 restart budget spent · 77 diverged · 78 storage said no · 124 out of time ·
128 crashed · 129 storage away · 130 hung · 143 stopped and saved
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the process's exit code."""
    _end_when_asked()
    _collect_rarely()
    options = _parser().parse_args(arguments)
    logs.configure(getattr(options, "log_format", None) or "logfmt", level="DEBUG" if options.debug else "INFO")
    verb: Verb = options.verb
    try:
        return verb(options)
    except GibletError as error:
        if options.debug:
            raise
        print(f"giblet: error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("giblet: stopped; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return StoppedError.exit_code
    except OSError as error:
        if options.debug or error.errno != 28:
            raise
        print(f"giblet: error: {error}\n  remedy: free some space; what was whole is still whole", file=sys.stderr)  # noqa: T201
        return OutOfSpaceError.exit_code


def _collect_rarely() -> None:
    """Look for garbage rarely, and not at all at the end: imports make many objects and drop few.

    Python looks after each 700 new objects, which takes a quarter of an `import torch`, and again at the exit.
    """
    gc.set_threshold(OBJECTS_BEFORE_COLLECTION, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def _end_when_asked() -> None:
    """What SIGTERM does to any other process, until the verb knows better.

    Linux gives a container's first process no default action: while it still imports, a pod that is deleted would go on
    as if nothing had been said, and be killed at the end of its grace period.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: types.FrameType | None) -> None:
    os._exit(StoppedError.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="giblet", description=giblet.__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"giblet {giblet.__version__}")
    parser.add_argument("--debug", action="store_true", help="log more, and show tracebacks")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for module in (data, training, launch, verify, runs, logs_verb, gate, preflight, config):
        module.add(verbs)
    return parser
