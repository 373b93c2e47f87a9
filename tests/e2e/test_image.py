"""The image, built as anybody builds it, tested in a container as anybody's cluster would run it.

With a Docker engine in one of its containers, else as a pod of a cluster.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import REPOSITORY, TestCluster

# isort: split
from trainerimage.builders import docker_answers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> TestCluster | None:
    """A local cluster; None where Docker runs the container."""
    if docker_answers():
        return None
    ours: TestCluster = request.getfixturevalue("lab").cluster
    return ours


def image(cluster: TestCluster | None, *words: str) -> subprocess.CompletedProcess[str]:
    """ci/image to its end, for a CPU: what differs from the whole image are CUDA's libraries alone."""
    environment = cluster.environment if cluster is not None else None
    command = [sys.executable, str(REPOSITORY / "ci/image"), *words, "--accelerator=none", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_it_trains_and_verifies_with_hardly_any_right(cluster):
    facts = json.loads(image(cluster, "test").stdout)
    assert facts["version"].startswith("giblet ")
    assert facts["verdict"].startswith("SAFE")
    assert facts["step"] > 0
    assert facts["elements"] > 0


def test_giblet_itself_is_a_small_layer_at_the_top(cluster):
    layers = json.loads(image(cluster, "sizes").stdout)
    assert "/app" in layers[-1]["made_by"]
    assert layers[-1]["bytes"] < 20e6
    assert sum(row["bytes"] for row in layers) > 1e9


def test_built_again_nothing_is_done(cluster):
    assert json.loads(image(cluster, "build").stdout)["seconds"] == 0


def test_pushed_once_it_is_pulled_by_its_digest(cluster):
    if cluster is None:
        pytest.skip("Docker runs it from its own store")
    first, second = (json.loads(cluster.run("image", "--json").stdout) for _ in range(2))
    assert first == second
    assert first["image"] == f"{first['repository']}@{first['digest']}"


def test_no_secret_and_no_cache_is_in_it():
    """What enters the build is what .dockerignore lets through: code and locks."""
    allowed = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert allowed == ["!LICENSE", "!README.md", "!ci", "!ci/bootstrap.lock", "!docker", "!giblet", "!pyproject.toml"]
    strangers = [path for path in Path(REPOSITORY / "giblet").rglob("*") if path.name.startswith(".env")]
    assert strangers == []
