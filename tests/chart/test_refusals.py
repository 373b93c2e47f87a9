"""What cannot work is refused before anything is created: with the key, the reason and what to do instead."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from giblet.config.values import Values
from tests.support.chart import MINIMAL, Object, merged, refusal

REFUSED: dict[str, tuple[Object, tuple[str, ...]]] = {
    "fewer workers at most than at least": (
        {"workers": {"min": 3, "max": 2, "replicas": 2}},
        ("workers.min 3 <= workers.replicas 2 <= workers.max 2", "put them in order"),
    ),
    "more workers than at most": ({"workers": {"replicas": 4}}, ("workers.replicas 4", "put them in order")),
    "a Master": ({"master": {"replicas": 1}}, ("/master", "count of nodes is wrong", "leave it out")),
    "standalone": ({"workers": {"standalone": True}}, ("/workers/standalone", "run of its own", "leave it out")),
    "a number of processes a node": (
        {"workers": {"nprocPerNode": 8}},
        ("/workers/nprocPerNode", "is a string", "write gpusPerWorker"),
    ),
    "a TTL where exit codes decide": (
        {"workers": {"ttlSecondsAfterFinished": 60}},
        ("/workers/ttlSecondsAfterFinished", "completion time", "choose OnFailure"),
    ),
    "a backoff limit where exit codes decide": (
        {"workers": {"backoffLimit": 50}},
        ("/workers/backoffLimit", "never counts", "workers.maxRestarts"),
    ),
    "a backoff limit that ends the job before its budget": (
        {"workers": {"restartPolicy": "OnFailure", "backoffLimit": 5}},
        ("workers.backoffLimit 5", "before its own budget", "raise backoffLimit"),
    ),
    "a grace period that is not above the shutdown timeout": (
        {"workers": {"terminationGracePeriodSeconds": 420}},
        ("workers.terminationGracePeriodSeconds 420", "last save", "raise"),
    ),
    "a grace period that leaves no time for last words": (
        {"workers": {"terminationGracePeriodSeconds": 430}},
        ("workers.terminationGracePeriodSeconds 430", "last save", "raise"),
    ),
    "a shutdown timeout that is not above the time of a save": (
        {"workers": {"saveSeconds": 420}},
        ("workers.saveSeconds 420", "last save", "raise"),
    ),
    "fewer GPUs than processes": (
        {"workers": {"gpusPerWorker": 2, "processesPerWorker": 4}},
        ("workers.processesPerWorker 4", "GPU of its own", "lower"),
    ),
    "GPUs written twice": (
        {"resources": {"limits": {"nvidia.com/gpu": "4"}}},
        ("resources.limits.nvidia.com/gpu is 4", "write only gpusPerWorker"),
    ),
    "shared memory above the memory limit": (
        {"workers": {"sharedMemory": "16Gi"}, "resources": {"limits": {"memory": "8Gi"}}},
        ("workers.sharedMemory 16Gi", "resources.limits.memory 8Gi", "raise the limit"),
    ),
    "shared memory in other units, above the memory limit": (
        {"workers": {"sharedMemory": "1024Mi"}, "resources": {"limits": {"memory": "1G"}}},
        ("workers.sharedMemory 1024Mi", "resources.limits.memory 1G"),
    ),
    "metrics of an autoscaler": (
        {"workers": {"metrics": [{"type": "Resource"}]}},
        ("/workers/metrics", "HorizontalPodAutoscaler", "set replicas, min and max"),
    ),
    "an autoscaler": ({"workers": {"autoscaling": {"enabled": True}}}, ("/workers/autoscaling", "fight the launcher")),
    "the host's network": ({"hostNetwork": True}, ("/hostNetwork", "Pod Security", "leave it out")),
    "a folder of the host": ({"cache": {"hostPath": "/mnt"}}, ("/cache/hostPath", "Pod Security", "existingClaim")),
    "a second container": (
        {"extraContainers": [{"name": "x"}]},
        ("/extraContainers", "keeps its worker from ending", "extraInitContainers"),
    ),
    "the host's IPC": ({"hostIPC": True}, ("/hostIPC", "Pod Security", "workers.sharedMemory")),
    "the name that another chart has for a key": (
        {"env": [{"name": "A", "value": "b"}], "replicaCount": 2},
        ("here it is extraEnv", "here it is workers.replicas"),
    ),
    "two credentials": (
        {"s3": {"existingSecret": "x", "accessKeyId": "a", "secretAccessKey": "b"}},
        ("s3.existingSecret and s3.accessKeyId", "keep existingSecret"),
    ),
    "half a credential": ({"s3": {"accessKeyId": "a"}}, ("s3.secretAccessKey", "set both or none")),
    "two authorities": ({"s3": {"ca": {"secret": "a", "configMap": "b"}}}, ("s3.ca.secret", "keep one")),
    "a key that does not exist": ({"worker": {"replicas": 1}}, ("worker",)),
    "a key of the trainer that does not exist": ({"config": {"training": {"epoch": 3}}}, ("config/training", "epoch")),
    "a number where a text belongs": ({"image": {"tag": 1.10}}, ("image/tag", "string")),
    "no epochs at all": ({"config": {"training": {"epochs": 0}}}, ("config/training/epochs",)),
}

ONLY_THE_CHART: dict[str, tuple[Object, tuple[str, ...]]] = {
    "no image": ({"image": {"repository": ""}}, ("image.repository", "no image is published", "docker/build")),
    "checkpoints in a folder": (
        {"config": {"checkpoint": {"url": "work/runs"}}},
        ("config.checkpoint.url is work/runs", "end with the pod", "s3://bucket/prefix"),
    ),
    "an S3 server inside the pod": (
        {"config": {"checkpoint": {"endpoint_url": "embedded"}}},
        ("config.checkpoint.endpoint_url is embedded", "end with its pod", "name a real one"),
    ),
    "no data": (
        {"config": {"data": {"prepared": None}}},
        ("config.data.bids and config.data.prepared", "nothing to train on", "data.existingClaim"),
    ),
    "data where no volume is": (
        {"config": {"data": {"prepared": None, "bids": "/data/bids"}}},
        ("config.data.bids is /data/bids", "no volume", "data.existingClaim"),
    ),
    "data beside the volume": (
        {"data": {"existingClaim": "bids"}, "config": {"data": {"prepared": None, "bids": "/database/bids"}}},
        ("config.data.bids is /database/bids", "data.mountPath"),
    ),
    "a name that begins with a digit": ({"fullnameOverride": "7-giblet"}, ("7-giblet", "set fullnameOverride")),
    "a volume with a name of ours": (
        {"extraVolumes": [{"name": "shm", "emptyDir": {}}]},
        ("shm", "extraVolumes", "choose another"),
    ),
}


@pytest.mark.parametrize(("values", "said"), (REFUSED | ONLY_THE_CHART).values(), ids=REFUSED | ONLY_THE_CHART)
def test_helm_refuses(values: Object, said: tuple[str, ...]) -> None:
    message = refusal(merged(MINIMAL, values) if "image" not in values else values).replace("\\", "")
    flat = " ".join(message.replace("'", "").split())
    for words in said:
        assert words in flat or words.replace("/", ".") in flat, message


@pytest.mark.parametrize("values", [values for values, _ in REFUSED.values()], ids=REFUSED)
def test_config_check_refuses_the_same(values: Object) -> None:
    with pytest.raises(ValidationError):
        Values.model_validate(merged(MINIMAL, values))


@pytest.mark.parametrize("title", [title for title, (_, said) in REFUSED.items() if "." in said[0]])
def test_both_doors_give_the_same_reason(title: str) -> None:
    """Rules between keys stand in giblet/config/values.py and in the templates, in the same words."""
    values, _ = REFUSED[title]
    with pytest.raises(ValidationError) as caught:
        Values.model_validate(merged(MINIMAL, values))
    reason = caught.value.errors()[0]["msg"].removeprefix("Value error, ")
    assert reason in refusal(values)


def test_all_faults_are_said_at_once() -> None:
    said = refusal(
        {"workers": {"replicas": 4, "saveSeconds": 900}, "s3": {"accessKeyId": "a"}, "image": {"repository": ""}}
    )
    assert all(key in said for key in ("workers.replicas", "workers.saveSeconds", "s3.accessKeyId", "image.repository"))
