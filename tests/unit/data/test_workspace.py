"""The folder in which a dataset is made."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from giblet.data.workspace import Workspace, flush


@pytest.mark.parametrize(("shape", "dtype"), [((3, 4), "float16"), ((5,), "bool"), ((2, 3, 1), "int16")])
def test_an_array_is_a_npy_file_opened_again_without_python_s_parser(tmp_path, monkeypatch, shape, dtype):
    """Two threads in `ast` at once are a SystemError in CPython 3.11; numpy reads headers with it."""
    workspace = Workspace(tmp_path, "0" * 64)
    workspace.begin()
    first = workspace.array("folder/values", shape, dtype)
    assert not first.any()
    first[:] = wanted = np.ones(shape, dtype)
    flush(first)
    assert np.array_equal(np.load(workspace.folder / "folder/values.npy"), wanted)

    def refuse(*_args, **_words):
        raise AssertionError("parsed")

    monkeypatch.setattr(ast, "parse", refuse)
    again = workspace.array("folder/values", shape, dtype)
    assert (again.shape, again.dtype) == (shape, np.dtype(dtype))
    again[0] = 0
    flush(again)
    monkeypatch.undo()
    assert not np.load(workspace.folder / "folder/values.npy")[0].any()
