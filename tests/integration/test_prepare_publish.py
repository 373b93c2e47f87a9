"""`giblet prepare --publish`: prepared once, then fetched by every other machine."""

from __future__ import annotations

import json

import pytest
import yaml

from giblet.cli import main
from giblet.data import prepare as preparing
from tests.support.bids import make_bids, tiny_config


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return make_bids(tmp_path_factory.mktemp("bids"), trs=60, tr_seconds=3.0, film_seconds=12.0, fps=8, onset=4.5)


def _prepare(bids, folder, capsys, *, cache, arguments=("--publish",)):
    file = folder / f"{cache}.yaml"
    data = tiny_config(bids, folder / cache).model_dump(mode="json")
    file.write_text(yaml.safe_dump({"data": data, "checkpoint": {"url": str(folder / "store")}}))
    assert main(["prepare", "--config", str(file), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_second_machine_fetches_what_the_first_published(bids, tmp_path, capsys, monkeypatch):
    first = _prepare(bids, tmp_path, capsys, cache="one")
    assert (tmp_path / "store/datasets" / first["content_hash"] / "manifest.json").exists()

    monkeypatch.setattr(preparing, "_Preparation", None)  # preparing again would now fail
    second = _prepare(bids, tmp_path, capsys, cache="two")
    assert second["content_hash"] == first["content_hash"]
    assert second["path"] != first["path"]


def test_without_publish_nothing_leaves_the_machine(bids, tmp_path, capsys):
    _prepare(bids, tmp_path, capsys, cache="one", arguments=())
    assert not (tmp_path / "store").exists()
