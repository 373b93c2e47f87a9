"""What is generated from the schema says the same as the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from giblet.config.generate import reference_text, values_schema, values_schema_text
from giblet.config.load import leaves
from giblet.config.resume import RESUME_MAY_CHANGE
from giblet.config.schema import GibletConfig
from giblet.config.values import Values

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_json_schema_accepts_every_shipped_file(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(values_schema())
    jsonschema.validate(yaml.safe_load(path.read_text()), values_schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "values",
    [
        {"config": {"training": {"epoch": 3}}},
        {"config": {"training": {"epochs": 0}}},
        {"config": {"data": {"audio": {"bandwidth_kbps": 5}}}},
        {"workers": {"gpusPerWorker": "8"}},
        {"worker": {}},
    ],
)
def test_the_json_schema_and_the_loader_refuse_the_same(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, values_schema(), cls=jsonschema.Draft202012Validator)
    with pytest.raises(ValidationError):
        Values.model_validate(values, strict=True)


def test_generated_files_are_up_to_date() -> None:
    assert (ROOT / "helm/giblet/values.schema.json").read_text() == values_schema_text(), "run `make generated`"
    assert (ROOT / "configs/README.md").read_text() == reference_text(), "run `make generated`"
    assert json.loads(values_schema_text())["$schema"].endswith("2020-12/schema")


def test_the_reference_names_every_key() -> None:
    text = reference_text()
    for key, _default in leaves(GibletConfig().model_dump()):
        assert f"`{key}`" in text
    assert "`workers.gpusPerWorker`" in text


def test_keys_that_may_change_exist() -> None:
    keys = {key for key, _ in leaves(GibletConfig().model_dump())}
    for key in RESUME_MAY_CHANGE:
        assert key in keys or any(known.startswith(key.removesuffix("*")) for known in keys), key
