"""The page of `giblet verify --html`: whole, on its own, and saying what the report says."""

from __future__ import annotations

import re

import pytest
import torch

from giblet.cli import main
from giblet.storage import LocalStorage
from giblet.verify.wording import in_bytes, number, share_text, time_text
from tests.support.html import Page
from tests.support.weights import legacy_file, small_config, trained_tensors, training_state, write_checkpoint

CONFIG = small_config()
TENSORS = trained_tensors(CONFIG)
NAN, DEAD, HUGE, IDLE = (
    "model.encoder.layer5.0.weight", "model.decoder.layer9.0.weight", "model.decoder.layer10.0.weight",
    "optimizer.exp_avg.encoder.layer5.0.weight",
)  # fmt: skip


def moved(step: int) -> dict[str, torch.Tensor]:
    """The tensors of a later step: everything that is not zero grew by a hundredth."""
    counts = {name: torch.tensor(float(step)) for name in TENSORS if name.startswith("optimizer.step.")}
    return {name: value * 1.01 if value.is_floating_point() else value for name, value in TENSORS.items()} | counts


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run of three checkpoints; the last is damaged in four ways."""
    storage = LocalStorage(tmp_path_factory.mktemp("page") / "store")
    damaged = {name: value.clone() for name, value in moved(20).items()}
    damaged[NAN].view(-1)[3:5] = float("nan")
    damaged[DEAD].zero_()
    damaged[HUGE].view(-1)[-1] = 3e7
    damaged[IDLE].zero_()
    for step, tensors in ((12, TENSORS), (16, moved(16)), (20, damaged)):
        write_checkpoint(storage, tensors, training_state(CONFIG, step), step=step)
    return storage


def page_of(store, tmp_path, step, *more, code=0) -> tuple[str, Page]:
    path = tmp_path / "page.html"
    checkpoint = f"{store.url}/runs/movie/checkpoints/step-{step:08d}"
    assert main(["verify", checkpoint, "--html", str(path), *more]) == code
    text = path.read_text()
    return text, Page(text)


def rows_of(text: str) -> dict[str, str]:
    """The rows of the tables by the tensor that each begins with."""
    rows = re.findall(r"<tr[^>]*>.*?</tr>", text, re.DOTALL)
    named = ((re.search(r'class="name">(?:<i>(.*?)</i>)?(.*?)</span>', row), row) for row in rows)
    return {f"{found[1] or ''}{found[2]}": row for found, row in named if found}


def test_a_healthy_checkpoint(store, tmp_path):
    text, page = page_of(store, tmp_path, 16)
    words = " ".join(page.words)
    assert page.open == []
    assert page.sources == []
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import|<script|javascript:| on\w+=", text)
    assert "SAFE" in words
    assert "No check found anything wrong" in words
    assert 'class="fault"' not in text
    rows = rows_of(text)
    assert rows.keys() == TENSORS.keys()
    assert rows["model.encoder.layer6.0.weight"].count("<svg") == 3  # values, magnitudes, change
    assert "0.01" in rows["model.encoder.layer6.0.weight"]
    assert "of which 0 unexplained" in words
    assert "takes out again" in words
    assert "Since step 12" in words


def test_a_rejected_checkpoint_shows_what_is_wrong_on_top(store, tmp_path):
    text, page = page_of(store, tmp_path, 20, code=1)
    words = " ".join(page.words)
    assert words.index("UNSAFE") < words.index("Do not build on these weights") < words.index("Named by a check")
    on_top = text[text.index("Named by a check") : text.index("Tensors that are all zero")]
    assert rows_of(on_top).keys() == {NAN, DEAD, HUGE, IDLE}
    rows = rows_of(text)
    assert "2 NaN" in rows[NAN]
    assert "1 beyond the limit" in rows[HUGE]
    assert {name for name, row in rows.items() if 'class="fault"' in row} == {NAN, DEAD, HUGE, IDLE}
    assert "of which 2 unexplained" in words


def test_the_first_checkpoint_and_one_that_is_named(store, tmp_path):
    _, page = page_of(store, tmp_path, 12)
    assert "no earlier checkpoint of its run" in " ".join(page.words)
    legacy_file(tmp_path / "old.pt", TENSORS)
    text, page = page_of(store, tmp_path, 12, "--against", f"{store.url}/runs/movie/checkpoints/step-00000016")
    assert "Since step 16" in " ".join(page.words)
    assert "0.0099" in rows_of(text)["model.encoder.layer6.0.weight"]


def test_another_programs_file(tmp_path):
    legacy_file(tmp_path / "checkpoint_epoch_1.pt", TENSORS, best_val_loss=0.625)
    assert main(["verify", str(tmp_path / "checkpoint_epoch_1.pt"), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    words = " ".join(Page(text).words)
    for expected in ("checkpoint_epoch_1.pt", "best_val_loss", "0.625", "optimizer_state_dict", "train_history"):
        assert expected in words, expected
    assert "encoder.layer5.0.weight" in rows_of(text)


def test_names_are_escaped_and_a_listing_that_is_lost_is_still_a_page(tmp_path):
    torch.save({"<b>x</b>.weight": torch.ones(20)}, tmp_path / "odd&.pt")
    assert main(["verify", str(tmp_path / "odd&.pt"), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "<b>x" not in text
    assert "&lt;b&gt;x" in text
    data = (tmp_path / "odd&.pt").read_bytes()
    (tmp_path / "odd&.pt").write_bytes(data[:-40])
    assert main(["verify", str(tmp_path / "odd&.pt"), "--html", str(tmp_path / "page.html")]) == 1
    page = Page((tmp_path / "page.html").read_text())
    assert page.open == []
    assert "damaged zip file" in " ".join(page.words)


def test_an_earlier_checkpoint_that_is_damaged_is_no_error(store, tmp_path):
    key = next(
        info.key for info in store.list("runs/movie/checkpoints/step-00000012/") if info.key.endswith("0.safetensors")
    )
    data = store.get(key)
    try:
        store.put(key, data[:-5000])
        _, page = page_of(store, tmp_path, 16)
        assert "could not be compared" in " ".join(page.words)
    finally:
        store.put(key, data)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--html", "{tmp}/nowhere/page.html"], "there is no folder"),
        (["--html", "{tmp}"], "is a folder"),
        (["--against", "{tmp}/x"], "--against is for the page"),
    ],
)
def test_what_is_wrong_with_the_page_is_said_before_anything_is_read(tmp_path, capsys, arguments, words):
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(["verify", str(tmp_path / "absent.pt"), *given]) == 2
    assert words in capsys.readouterr().err


def test_numbers_as_people_read_them():
    assert [number(value) for value in (0.0, -0.001234, 1.5e-7, 3e12, float("inf"))] == [
        "0", "−0.00123", "1.5 · 10⁻⁷", "3 · 10¹²", "∞",
    ]  # fmt: skip
    assert [share_text(part, 100_000) for part in (0, 1, 50_000, 99_999, 100_000)] == [
        "0 %", "< 0.01 %", "50 %", "> 99.9 %", "100 %",
    ]  # fmt: skip
    assert [in_bytes(count) for count in (12, 4_200, 12_800_000_000)] == ["12 bytes", "4.2 kB", "12.8 GB"]
    assert [time_text(seconds) for seconds in (1.25, 125.0)] == ["1.2 s", "2 min 5 s"]
