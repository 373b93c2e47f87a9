"""ci/smoke on a real cluster: what a lab's CI sees when a run ends well, badly, or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import REPOSITORY
from tests.support.lab import LOCAL, NAMESPACE, SMALL, Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

INSTANCE = "app.kubernetes.io/instance"
SHORT = ("--set", "config.training.epochs=1", "--set", "config.checkpoint.save_every_epochs=1")


def command(lab: Lab, *words: str, image: str | None = None) -> list[str]:
    values = ["-f", LOCAL, "-f", SMALL, "--image", image or lab.image, "--namespace", NAMESPACE, *SHORT]
    return [str(REPOSITORY / "ci/smoke"), *values, "--dataset", lab.dataset, *words]


def environment(lab: Lab) -> dict[str, str]:
    return os.environ | {"KUBECONFIG": str(lab.cluster.state / "kubeconfig")}


def smoke(lab: Lab, *words: str, image: str | None = None) -> dict[str, Any]:
    """Its result; what it said to people is shown if the test fails."""
    done = subprocess.run(
        command(lab, "--json", *words, image=image),
        cwd=REPOSITORY,
        env=environment(lab),
        capture_output=True,
        text=True,
    )
    print(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == result["exit_code"]
    return result | {"log": done.stderr}


def left_behind(lab: Lab, release: str) -> list[str]:
    """Objects of a release that are still there, pods included."""
    found = lab.get("all,configmaps,serviceaccounts,roles,networkpolicies,pytorchjobs", "-l", f"{INSTANCE}={release}")
    return [item["metadata"]["name"] for item in found["items"]]


def test_a_change_that_still_trains_passes_and_leaves_nothing(lab: Lab) -> None:
    result = smoke(lab, "--set", f"workers.gpusPerWorker=0,config.checkpoint.url={lab.storage.url}")
    assert (result["exit_code"], result["job"]) == (0, "Succeeded")
    assert result["verdict"].startswith("SAFE")
    assert result["verified_step"] > 0
    assert f"[{result['release']}-worker-0] " in result["log"]
    assert "checkpoint committed" in result["log"]
    assert left_behind(lab, result["release"]) == []
    assert list(lab.storage.list(f"runs/{result['run']}/")) == []


def test_weights_that_are_not_safe_fail_and_the_evidence_stays(lab: Lab, tmp_path: Path) -> None:
    strict = tmp_path / "strict.yaml"  # helm's --set knows no fractions
    strict.write_text("config: {verify: {magnitude_limit: 1.0e-9}}")
    result = smoke(lab, "-f", str(strict), "--set", f"workers.gpusPerWorker=0,config.checkpoint.url={lab.storage.url}")
    assert (result["exit_code"], result["verdict"]) == (1, "UNSAFE")
    assert left_behind(lab, result["release"]) == []
    assert list(lab.storage.list(f"runs/{result['run']}/reports/")) != []


def test_an_image_that_is_not_there_is_told_with_the_registrys_words(lab: Lab) -> None:
    result = smoke(lab, image=f"{lab.image.partition('@')[0]}:nosuch")
    assert result["exit_code"] == 4
    assert "ImagePull" in result["reason"]
    assert "not found" in result["reason"]
    assert left_behind(lab, result["release"]) == []


def test_a_secret_that_is_not_there_is_told_before_anything_is_created(lab: Lab) -> None:
    result = smoke(lab, "--set", "s3.existingSecret=nosuch")
    assert result["exit_code"] == 4
    assert "there is no secret nosuch" in result["reason"]
    assert "kubectl -n giblet create secret generic nosuch" in result["remedy"]
    assert result["run"] is None


def test_no_capacity_is_told_with_the_schedulers_words(lab: Lab) -> None:
    result = smoke(lab, "--set", "workers.gpusPerWorker=64", "--patience", "5")
    assert result["exit_code"] == 4
    assert "Unschedulable" in result["reason"]
    assert "nvidia.com/gpu" in result["reason"]


def test_an_interrupt_cleans_up(lab: Lab) -> None:
    words = command(lab, "--release", "giblet-smoke-interrupted", "--set", "workers.gpusPerWorker=0")
    with subprocess.Popen(words, cwd=REPOSITORY, env=environment(lab), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("pod "):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode == 130
    assert left_behind(lab, "giblet-smoke-interrupted") == []
