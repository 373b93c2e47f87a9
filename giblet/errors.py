"""The exception tree. Every class carries the exit code that its kind ends a process with.

    GibletError                   1
    ├── ConfigError               2   the configuration or the command line is wrong
    ├── DataError                65   an input file is missing, damaged or contradicts another
    ├── CheckpointError          66   no such checkpoint, or what lies there is not one
    ├── DependencyError          69   an optional package or a model's weights are not here
    ├── OutOfSpaceError          74   a disk is full
    ├── RunConflictError         75   another run uses this name, or took it over
    ├── RestartBudgetError       76   too many restarts without progress
    ├── DivergedError            77   the loss is no longer finite
    ├── StorageDeniedError       78   wrong secret, no permission, no such bucket
    ├── DeadlineError           124   what was waited for did not come in time
    ├── CrashedError            128   a process ended without a word, or was left in haste
    ├── StorageUnavailableError 129   storage does not answer
    ├── HungError               130   no step within the allowance
    └── StoppedError            143   asked to stop; everything worth keeping was saved

1 to 127 are permanent (a restart would end the same way), 128 and above are worth a retry. A message says
what is wrong, where, what would be allowed, and what to do.
"""

from __future__ import annotations

import re

EXIT_OK = 0
EXIT_UNSAFE = 1
EXIT_CRASHED = 128


class GibletError(Exception):
    """Anything giblet reports to a person in one readable message, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message if remedy is None else f"{message}\n  remedy: {remedy}")
        self.message = message
        self.remedy = remedy


class ConfigError(GibletError):
    """The configuration or the command line is wrong; the message lists every fault at once."""

    exit_code = 2


class DataError(GibletError):
    """An input file is missing, damaged, or contradicts another."""

    exit_code = 65


class CheckpointError(GibletError):
    """There is no such checkpoint, or what lies there cannot be read as one."""

    exit_code = 66


class DependencyError(GibletError):
    """An optional package, or a pretrained model's weights, are not on this machine."""

    exit_code = 69


class OutOfSpaceError(GibletError):
    """A disk is full. What was whole before is still whole."""

    exit_code = 74


class RunConflictError(GibletError):
    """Another run uses this name, a newer start took this run over, or its configuration changed."""

    exit_code = 75


class RestartBudgetError(GibletError):
    """Too many restarts without a newly committed step."""

    exit_code = 76


class DivergedError(GibletError):
    """The loss or the gradient is no longer finite; `loss` and `grad_norm` are what they were."""

    exit_code = 77
    loss: float = float("nan")
    grad_norm: float = float("nan")


class StorageDeniedError(GibletError):
    """Storage answered, and said no: wrong secret, no permission, no such bucket."""

    exit_code = 78


class DeadlineError(GibletError):
    """What was waited for did not come within the time that was set for it."""

    exit_code = 124


class CrashedError(GibletError):
    """A process of ours was killed or crashed, or a second Ctrl-C left it no time to save."""

    exit_code = EXIT_CRASHED


class StorageUnavailableError(GibletError):
    """Storage does not answer, or not in time. Worth a retry."""

    exit_code = 129


class HungError(GibletError):
    """No step within the allowance."""

    exit_code = 130


class StoppedError(GibletError):
    """Asked to stop (SIGTERM, Ctrl-C); everything worth keeping was saved."""

    exit_code = 143


def cause_of(kind: type[Exception]) -> str:
    """The cause in one word, for records and metrics: `StorageDeniedError` → `storage_denied`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Error")).lower()
