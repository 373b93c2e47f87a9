"""The annotation table: sound, and cut by time."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from giblet.data.example.annotations import Segment, annotations_table, cut_annotations, packaged_annotations
from giblet.data.example.annotations import read_annotations as read
from giblet.data.example.film import Part
from giblet.errors import DataError

FILM_SECONDS = 596.46


def test_the_packaged_table_describes_the_film_from_end_to_end() -> None:
    segments = packaged_annotations()
    assert len(segments) >= 60
    assert segments[0].onset_seconds == 0
    assert segments[-1].end_seconds <= FILM_SECONDS
    for before, after in itertools.pairwise(segments):
        assert before.end_seconds <= after.onset_seconds + 1e-6, f"{before} overlaps {after}"
        assert after.onset_seconds - before.end_seconds < 1.0, f"nothing between {before} and {after}"


def test_the_packaged_sentences_are_sentences_and_differ() -> None:
    texts = [segment.text for segment in packaged_annotations()]
    assert all(len(text.split()) >= 3 and text[0].isupper() and text[-1] == "." for text in texts)
    assert len(set(texts)) == len(texts)


def test_cutting_keeps_what_a_part_shows_on_its_own_clock() -> None:
    segments = [Segment(0, 4, "a"), Segment(4, 4, "b"), Segment(8, 4, "c")]
    assert cut_annotations(segments, Part(5.0, 10.0)) == [Segment(0, 3, "b"), Segment(3, 2, "c")]


def test_a_table_survives_being_written_and_read(tmp_path: Path) -> None:
    segments = [Segment(0.125, 1.5, 'He says "ho".'), Segment(2.0, 1.0, "Él calla.")]
    (tmp_path / "t.tsv").write_text(annotations_table(segments), encoding="utf-8")
    assert read(tmp_path / "t.tsv") == segments


@pytest.mark.parametrize(
    ("row", "what"),
    [("1\t1\t", "line 2"), ("x\t1\ttext", "no numbers"), ("1\t0\ttext", "above 0"), ("-1\t2\ttext", "at least 0")],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, what: str) -> None:
    (tmp_path / "t.tsv").write_text(f"onset\tduration\ttext\n{row}\n")
    with pytest.raises(DataError, match=what):
        read(tmp_path / "t.tsv")


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("onset\ttext\n1\ta\n")
    with pytest.raises(DataError, match="onset, duration, text"):
        read(tmp_path / "t.tsv")
