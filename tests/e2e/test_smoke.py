"""ci/smoke on a real cluster: what a lab's CI sees when a run ends well, badly, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import REPOSITORY
from tests.support.lab import LOCAL, NAMESPACE, SMALL, Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

Smoke = Callable[[str], dict[str, Any]]
INSTANCE = "app.kubernetes.io/instance"
SHORT = ("--set", "config.training.epochs=1", "--set", "config.checkpoint.save_every_epochs=1")


def command(lab: Lab, *words: str, image: str | None = None) -> list[str]:
    values = ["-f", LOCAL, "-f", SMALL, "--image", image or lab.image, "--namespace", NAMESPACE, *SHORT]
    return [str(REPOSITORY / "ci/smoke"), *values, "--dataset", lab.dataset, *words]


def environment(lab: Lab) -> dict[str, str]:
    return os.environ | {"KUBECONFIG": str(lab.cluster.state / "kubeconfig")}


CPU_ONLY = "workers.gpusPerWorker=0"


@pytest.fixture(scope="module")
def results(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, dict[str, Any]]]:
    """What came of several runs that began together, by what is wrong with them; `log` is what it said to people."""
    folder = tmp_path_factory.mktemp("smoke")
    strict = folder / "strict.yaml"  # helm's --set knows no fractions
    strict.write_text("config: {verify: {magnitude_limit: 1.0e-9}}")
    trains = ("--set", f"{CPU_ONLY},config.checkpoint.url={lab.storage.url}")
    asked = {
        "nothing": command(lab, *trains),
        "weights": command(lab, "-f", str(strict), *trains),
        "image": command(lab, image=f"{lab.image.partition('@')[0]}:nosuch"),
        "secret": command(lab, "--set", "s3.existingSecret=nosuch"),
        "capacity": command(lab, "--set", "workers.gpusPerWorker=64", "--patience", "30"),
    }
    with contextlib.ExitStack() as stack:
        running = {}
        for name, words in asked.items():
            told = stack.enter_context((folder / f"{name}.txt").open("w"))
            running[name] = stack.enter_context(
                subprocess.Popen(
                    [*words, "--json"], cwd=REPOSITORY, env=environment(lab), stdout=subprocess.PIPE, stderr=told
                )
            )
        yield {name: _result(process, folder / f"{name}.txt") for name, process in running.items()}


def _result(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    result: dict[str, Any] = json.loads(process.stdout.read())
    assert process.wait() == result["exit_code"], log.read_text()
    return result | {"log": log.read_text()}


@pytest.fixture
def smoke(results: Mapping[str, dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    """One of the results; its log is shown if the test fails."""

    def of(wrong: str) -> dict[str, Any]:
        print(results[wrong]["log"])
        return results[wrong]

    return of


def left_behind(lab: Lab, release: str) -> list[str]:
    """Objects of a release that are still there, pods included."""
    found = lab.get("all,configmaps,serviceaccounts,roles,networkpolicies,pytorchjobs", "-l", f"{INSTANCE}={release}")
    return [item["metadata"]["name"] for item in found["items"]]


def test_a_change_that_still_trains_passes_and_leaves_nothing(lab: Lab, smoke: Smoke) -> None:
    result = smoke("nothing")
    assert (result["exit_code"], result["job"]) == (0, "Succeeded")
    assert result["verdict"].startswith("SAFE")
    assert result["verified_step"] > 0
    assert f"[{result['release']}-worker-0] " in result["log"]
    assert "checkpoint committed" in result["log"]
    assert left_behind(lab, result["release"]) == []
    assert list(lab.storage.list(f"runs/{result['run']}/")) == []


def test_weights_that_are_not_safe_fail_and_the_evidence_stays(lab: Lab, smoke: Smoke) -> None:
    result = smoke("weights")
    assert (result["exit_code"], result["verdict"]) == (1, "UNSAFE")
    assert left_behind(lab, result["release"]) == []
    assert list(lab.storage.list(f"runs/{result['run']}/reports/")) != []


def test_an_image_that_is_not_there_is_told_with_the_registrys_words(lab: Lab, smoke: Smoke) -> None:
    result = smoke("image")
    assert result["exit_code"] == 4
    assert "ImagePull" in result["reason"]
    assert "not found" in result["reason"]
    assert left_behind(lab, result["release"]) == []


def test_a_secret_that_is_not_there_is_told_before_anything_is_created(smoke: Smoke) -> None:
    result = smoke("secret")
    assert result["exit_code"] == 4
    assert "there is no secret nosuch" in result["reason"]
    assert "kubectl -n giblet create secret generic nosuch" in result["remedy"]
    assert result["run"] is None


def test_no_capacity_is_told_with_the_schedulers_words(smoke: Smoke) -> None:
    result = smoke("capacity")
    assert result["exit_code"] == 4
    assert "Unschedulable" in result["reason"]
    assert "nvidia.com/gpu" in result["reason"]


def test_an_interrupt_cleans_up(lab: Lab) -> None:
    words = command(lab, "--release", "giblet-smoke-interrupted", "--set", CPU_ONLY)
    with subprocess.Popen(words, cwd=REPOSITORY, env=environment(lab), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("pod "):
                process.send_signal(signal.SIGINT)
                break
        told = process.stdout.read()
    assert process.returncode == 130, told
    assert left_behind(lab, "giblet-smoke-interrupted") == []
