"""Values that the chart's tests render, by what they ask for; and what a file of configs/ leaves to the lab."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support.chart import REPOSITORY, Object, merged

ANOTHER_LAB: Object = yaml.safe_load((REPOSITORY / "tests/chart/values/another-lab.yaml").read_text())

ELASTIC: Object = {"workers": {"replicas": 2, "min": 1, "max": 8, "gpusPerWorker": 1}}
HOOK: Object = {
    "data": {"existingClaim": "bids", "prepare": "hook"},
    "config": {"data": {"prepared": None, "bids": "/data/bids"}},
}

SCENARIOS: dict[str, Object] = {
    "elastic workers of one GPU": ELASTIC,
    "two nodes of eight GPUs": {"workers": {"replicas": 2, "min": 2, "max": 2}},
    "workers without GPUs": {"workers": {"gpusPerWorker": 0, "processesPerWorker": 2}},
    "GPUs of another maker": {"workers": {"gpuResource": "amd.com/gpu"}},
    "elastic workers that meet at the first of them": merged(ELASTIC, {"rendezvous": {"mode": "worker"}}),
    "restarts by the kubelet": {"workers": {"restartPolicy": "OnFailure", "ttlSecondsAfterFinished": 60}},
    "a deadline": {"workers": {"activeDeadlineSeconds": 604800}, "verify": {"activeDeadlineSeconds": 604800}},
    "a gang scheduler and a queue": {
        "scheduling": {
            "schedulerName": "volcano",
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
            "queue": "lab",
            "suspend": True,
            "gang": {"minAvailable": 1, "queue": "lab", "minResources": {"nvidia.com/gpu": 8}},
        }
    },
    "placement": merged(
        ELASTIC,
        {
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
            ],
            "verify": {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "cpu", "operator": "Exists"}]},
            "rendezvous": {"nodeSelector": {"pool": "cpu"}, "priorityClassName": "high"},
        },
    ),
    "extras of every kind": {
        "commonLabels": {"cost-centre": "7"},
        "podLabels": {"team": "movies"},
        "podAnnotations": {"note": "1"},
        "imagePullSecrets": [{"name": "registry"}],
        "extraEnv": [{"name": "NCCL_DEBUG", "value": "INFO"}],
        "extraEnvFrom": [{"secretRef": {"name": "more"}}],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "podSecurityContext": {"runAsUser": 1234, "fsGroup": 1234},
    },
    "a secret that exists": {"s3": {"existingSecret": "bucket", "sessionTokenKey": "TOKEN"}},
    "credentials by value": {"s3": {"accessKeyId": "development", "secretAccessKey": "development-only"}},
    "an authority of one's own": {"s3": {"ca": {"configMap": "lab-ca", "key": "ca.pem"}}},
    "workload identity": {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}}},
    "accounts that exist": {
        "serviceAccount": {"create": False, "name": "trainer"},
        "verify": {"serviceAccount": {"create": False, "name": "judge"}},
    },
    "data on a volume": {
        "data": {"existingClaim": "bids", "subPath": "movies"},
        "config": {"data": {"prepared": None, "bids": "/data/bids"}},
    },
    "data prepared by a hook": HOOK,
    "a hook with credentials by value": merged(HOOK, {"s3": {"accessKeyId": "a", "secretAccessKey": "b"}}),
    "data that the trainer fetches itself": {"data": {"prepare": "none"}},
    "a cache that stays": {"cache": {"existingClaim": "cache"}},
    "signed checkpoints": {"verify": {"signing": {"existingSecret": "giblet-signing"}}},
    "no verification": {"verify": {"enabled": False}},
    "no NetworkPolicies": {"networkPolicy": {"enabled": False}},
    "tight NetworkPolicies": {
        "networkPolicy": {
            "https": False,
            "s3Ports": [8333],
            "s3To": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "extraEgress": [{"ports": [{"port": 3128, "protocol": "TCP"}]}],
        }
    },
    "an S3 of one's own": {"config": {"checkpoint": {"endpoint_url": "http://s3.giblet-s3.svc:8333"}}},
    "no metrics": {"config": {"telemetry": {"metrics_port": 0}}},
    "metrics with labels": {
        "monitoring": {"labels": {"release": "kube-prometheus-stack"}, "podMonitor": {"interval": "15s"}}
    },
    "a test that wants a GPU": {"test": {"gpus": 1}},
    "an image by digest": {"image": {"digest": f"sha256:{'0' * 64}"}},
    "memory that is limited": {"resources": {"limits": {"memory": "64Gi", "cpu": "16"}, "requests": {"cpu": "8"}}},
    "values of another lab's making": ANOTHER_LAB,
    "a large number": {"workers": {"maxRestarts": 999}, "config": {"training": {"max_steps": 123456789}}},
}


def filled(*files: Path) -> Object:
    """What a lab writes itself on top of files from configs/: an image, a bucket, and where the data is."""
    written: Object = merged(*(yaml.safe_load(file.read_text()) for file in files))
    config: Object = written.get("config", {})
    values: Object = {"image": {"repository": "registry.example.org/lab/giblet", "tag": "1"}}
    if not str(config.get("checkpoint", {}).get("url")).startswith("s3://") or "embedded_dir" in config["checkpoint"]:
        # A file for one machine. A null takes a key away again.
        values = merged(values, {"config": {"checkpoint": {"url": "s3://bucket/lab", "endpoint_url": None}}})
    data: Object = config.get("data", {})
    if not data.get("prepared") and not str(data.get("bids")).startswith("/data"):
        values = merged(values, {"config": {"data": {"bids": "/data/bids"}}})
    if not data.get("prepared") and not written.get("data", {}).get("existingClaim"):
        values = merged(values, {"data": {"existingClaim": "bids"}})
    return values


def ours(pod: Object) -> list[Object]:
    """A pod's containers without those that the values brought."""
    brought = {item["name"] for item in ANOTHER_LAB["extraInitContainers"]}
    both = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    return [item for item in both if item["name"] not in brought]
