"""The release that `make scale` puts on 128 simulated nodes, rendered; what grows with the workers, what not."""

from __future__ import annotations

import json

from tests.support.chart import REPOSITORY, Rendering, render

# isort: split
from scale.cluster import values


def rendered(workers: int) -> Rendering:
    return render(values(workers), files=[REPOSITORY / "configs/prod.yaml"])


def test_a_hundred_and_twenty_eight_workers_are_one_release_of_as_many_objects_as_two() -> None:
    few, many = rendered(2), rendered(128)
    assert sorted(o["kind"] for o in few.objects) == sorted(o["kind"] for o in many.objects)
    job = many.one("PyTorchJob")["spec"]
    assert job["pytorchReplicaSpecs"]["Worker"]["replicas"] == 128
    assert (job["elasticPolicy"]["minReplicas"], job["elasticPolicy"]["maxReplicas"]) == (1, 128)
    assert job["elasticPolicy"]["rdzvHost"].endswith("-rendezvous")
    assert many.one("PodDisruptionBudget")["spec"]["minAvailable"] == 1


def test_a_workers_template_does_not_grow_with_the_workers() -> None:
    """128 pods carry it, and the API server keeps each of them."""
    sizes = [len(json.dumps(rendered(n).one("PyTorchJob")["spec"]["pytorchReplicaSpecs"])) for n in (2, 128)]
    assert sizes[1] - sizes[0] < 100
    assert sizes[1] < 20_000
