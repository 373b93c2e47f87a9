"""Helm's half of a values file: what is refused and why, quantities, and overlays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from giblet.config.check import check_files, overlaid
from giblet.config.generate import values_schema
from giblet.config.quantity import quantity_value
from giblet.config.values import Values
from giblet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("values", "reason", "remedy"),
    [
        ({"master": {}}, "count of nodes is wrong", "all are workers"),
        ({"hostNetwork": True}, "restricted", "leave it out"),
        ({"extraContainers": [{"name": "x"}]}, "keeps its worker from ending", "extraInitContainers"),
        ({"workers": {"standalone": True}}, "ignores the operator's rendezvous", "leave it out"),
        ({"workers": {"nprocPerNode": 8}}, "is a string", "gpusPerWorker"),
        ({"workers": {"metrics": []}}, "HorizontalPodAutoscaler", "replicas, min and max"),
        ({"cache": {"hostPath": "/x"}}, "restricted", "existingClaim"),
        ({"workers": {"ttlSecondsAfterFinished": 0}}, "no completion time", "OnFailure"),
        ({"workers": {"backoffLimit": 9}}, "never counts", "maxRestarts"),
    ],
)
def test_a_refused_key_says_why_in_the_schema_and_in_the_loader(
    values: dict[str, Any], reason: str, remedy: str
) -> None:
    with pytest.raises(ValidationError) as loader:
        Values.model_validate(values)
    with pytest.raises(jsonschema.ValidationError) as schema:
        jsonschema.validate(values, values_schema(), cls=jsonschema.Draft202012Validator)
    for text in (str(loader.value), str(schema.value)):
        assert reason in text
        assert remedy in text


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"workers": {"min": 2}}, "workers.min 2 <= workers.replicas 1"),
        ({"workers": {"processesPerWorker": 9}}, "processesPerWorker 9 is above workers.gpusPerWorker 8"),
        ({"workers": {"saveSeconds": 420}}, "middle of its last save"),
        ({"workers": {"terminationGracePeriodSeconds": 439}}, "middle of its last save"),
        ({"workers": {"restartPolicy": "OnFailure", "backoffLimit": 10}}, "not above workers.maxRestarts 10"),
        ({"resources": {"limits": {"memory": "1024Mi"}}}, "sharedMemory 1Gi is not below"),
        ({"resources": {"limits": {"nvidia.com/gpu": 4}}}, "write only gpusPerWorker"),
        ({"s3": {"accessKeyId": "a"}}, "belong together"),
        ({"s3": {"existingSecret": "s", "accessKeyId": "a", "secretAccessKey": "b"}}, "keep existingSecret"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault.replace(".", r"\.")):
        Values.model_validate(values)


def test_the_limits_themselves_are_allowed() -> None:
    Values.model_validate(
        {"workers": {"terminationGracePeriodSeconds": 440}, "resources": {"limits": {"memory": "2G"}}}
    )
    Values.model_validate({"workers": {"restartPolicy": "OnFailure", "ttlSecondsAfterFinished": 0, "backoffLimit": 11}})


@pytest.mark.parametrize(
    ("text", "value"),
    [("1Gi", 2**30), ("1.5Ki", 1536), ("2G", 2e9), ("500m", 0.5), (8, 8), ("1e3", None), (None, None), ("", None)],
)
def test_quantities(text: object, value: float | None) -> None:
    assert quantity_value(text) == value


def test_an_overlay_wins_and_its_null_takes_away() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert overlaid(base, {"a": {"c": [3]}, "d": None, "e": None}) == {"a": {"b": 1, "c": [3]}, "e": None}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


@pytest.mark.parametrize(
    "name", ["two-node", "elastic", *(f"cluster/{p.stem}" for p in (ROOT / "configs/cluster").glob("*"))]
)
def test_every_shipped_overlay_fits_over_prod(name: str) -> None:
    config, _ = check_files([ROOT / "configs/prod.yaml", ROOT / f"configs/{name}.yaml"])
    assert config.run.name == "giblet_production"


def test_faults_of_a_combination_are_found_over_all_files(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"workers": {"replicas": 3, "max": 3}}))
    with pytest.raises(ConfigError, match="24 ranks want one each"):
        check_files([ROOT / "configs/prod.yaml", overlay])


def test_numbers_of_workers_that_stand_idle_for_a_part_are_named() -> None:
    _, notes = check_files([ROOT / "configs/prod.yaml", ROOT / "configs/elastic.yaml"])
    assert any("evenly over 5 workers (4%), 7 workers (14%)" in note for note in notes)
