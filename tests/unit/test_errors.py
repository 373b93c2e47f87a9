"""Exit codes are a contract: people's scripts and the cluster's restart rules read them."""

from __future__ import annotations

import re

from giblet import errors


def _classes() -> dict[str, type[errors.GibletError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.GibletError)
    }


def test_exit_codes() -> None:
    assert {name: cls.exit_code for name, cls in _classes().items()} == {
        "GibletError": 1,
        "ConfigError": 2,
        "DataError": 65,
        "CheckpointError": 66,
        "DependencyError": 69,
        "OutOfSpaceError": 74,
        "RunConflictError": 75,
        "RestartBudgetError": 76,
        "DivergedError": 77,
        "StorageDeniedError": 78,
        "DeadlineError": 124,
        "CrashedError": 128,
        "StorageUnavailableError": 129,
        "HungError": 130,
        "StoppedError": 143,
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"(\w+Error)\s+(\d+)", errors.__doc__ or ""))
    assert {name: int(code) for name, code in drawn.items()} == {n: c.exit_code for n, c in _classes().items()}


def test_the_remedy_is_part_of_what_a_person_reads() -> None:
    assert str(errors.DataError("film.mp4: no sound", remedy="add a sound track")) == (
        "film.mp4: no sound\n  remedy: add a sound track"
    )
