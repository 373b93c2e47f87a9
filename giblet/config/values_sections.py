"""The sections of a values file that are Helm's own (camelCase): types, defaults and what each key means.

Only what decides whether a run can work is typed closely; what Kubernetes itself validates (affinity, tolerations)
passes through. How they relate, and what is refused: values.py and refused.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from giblet.config.refused import (
    NOT_WITH_EXIT_CODE,
    NoAutoscaling,
    NoElasticMetrics,
    NoHostPath,
    NoNprocPerNode,
    NoStandalone,
)
from giblet.config.schema import Count


def without_nulls(value: Any) -> Any:
    """A value as Helm's users write it: a null takes its key away."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


_Given = BeforeValidator(without_nulls)
_NULLS_TOO = WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "null"]}})
KubernetesObject = Annotated[dict[str, Any], _Given]
KubernetesObjects = Annotated[list[dict[str, Any]], _Given]
Strings = Annotated[dict[str, str], _Given, _NULLS_TOO]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
Seconds = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
GPU_RESOURCE = "nvidia.com/gpu"


class HelmSection(BaseModel):
    """A frozen group of Helm values that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, given: Any) -> Any:
        """In the chart a null takes the default away; where that is empty, nothing changes."""
        if not isinstance(given, dict):
            return given
        empty = {field.alias or name for name, field in cls.model_fields.items() if field.default in ("", {}, [])}
        return {key: item for key, item in given.items() if item is not None or key not in empty}


class ImageValues(HelmSection):
    """The trainer's image. None is published: build and push your own (docker/)."""

    repository: str = Field("", description="Registry and name of the image, without a tag.")
    tag: str = Field("", description="Tag of the image. Empty: the chart's appVersion.")
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = Field(
        "", description="Digest (`sha256:…`); wins over the tag."
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field("IfNotPresent", description="When to pull.")


class WorkersValues(HelmSection):
    """The elastic workers of the PyTorchJob."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"restartPolicy": {"const": "ExitCode"}}},
            "then": {"properties": {key: {"enum": [None, why]} for key, why in NOT_WITH_EXIT_CODE.items()}},
        }
    )

    replicas: Count = Field(
        1, description="Workers wanted now. The only key that may change under a running job: it scales it."
    )
    min: Count = Field(1, description="Fewest workers that go on.")
    max: Count = Field(1, description="Most workers that join. Leave room for scaling: a running job keeps its limit.")
    gpus_per_worker: Annotated[int, Field(ge=0)] = Field(8, description="GPUs, and so processes, of a worker; 0: CPU.")
    processes_per_worker: Count | None = Field(None, description="Processes of a worker. null: one a GPU, or 1.")
    gpu_resource: str = Field(GPU_RESOURCE, description="The GPUs' resource name, for instance `amd.com/gpu`.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(10, description="Restarts without a newly committed step.")
    restart_policy: Literal["ExitCode", "OnFailure"] = Field(
        "ExitCode",
        description="`ExitCode`: the job ends for good on a code of 1 to 127 and replaces the pod on 128 and above. "
        "`OnFailure`: the kubelet restarts the container in its pod, whatever the code.",
    )
    backoff_limit: Count | None = Field(
        None, description="Only for `OnFailure`: restarts of all containers together that end the job. null: 1000."
    )
    active_deadline_seconds: Seconds | None = Field(None, description="The job ends after this. null: never.")
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Only for `OnFailure`: the operator deletes the job so long after its end. null: never."
    )
    save_seconds: Seconds = Field(300, description="The longest that a save may take when a worker is told to stop.")
    shutdown_timeout_seconds: Seconds = Field(
        420, description="So long the ranks have to save and end (TORCH_ELASTIC_SHUTDOWN_TIMEOUT); above `saveSeconds`."
    )
    termination_grace_period_seconds: Seconds = Field(
        480, description="Then the kubelet kills the pod; at least 20 more than `shutdownTimeoutSeconds`."
    )
    shared_memory: Quantity = Field(
        "1Gi", description="Size of /dev/shm (NCCL's rings). It is memory, and counts in the memory limit."
    )
    standalone: NoStandalone = None
    nproc_per_node: NoNprocPerNode = None
    metrics: NoElasticMetrics = None
    autoscaling: NoAutoscaling = None

    @property
    def processes(self) -> int:
        """Processes of one worker."""
        return self.processes_per_worker or max(self.gpus_per_worker, 1)


class ServiceAccountValues(HelmSection):
    """Who the pods are."""

    create: bool = Field(True, description="Create one.")
    name: str = Field("", description="Its name. Empty: the release's (the verifier's: with `-verify`).")
    annotations: Strings = Field({}, description="For instance a role's ARN for workload identity.")


class CaValues(HelmSection):
    """A custom certificate authority of the S3 endpoint."""

    secret: str = Field("", description="Secret that holds it.")
    config_map: str = Field("", description="Or the ConfigMap that does.")
    key: str = Field("ca.crt", description="Its key there: a PEM file.")


class S3Values(HelmSection):
    """Who the pods are to S3. Address, region and the like are the trainer's: `config.checkpoint`."""

    existing_secret: str = Field("", description="Secret with the credentials. Empty: the service account has them.")
    access_key_id_key: str = Field("AWS_ACCESS_KEY_ID", description="Key of the access key's id in that secret.")
    secret_access_key_key: str = Field(
        "AWS_SECRET_ACCESS_KEY", description="Key of the secret access key in that secret."
    )
    session_token_key: str = Field("", description="Key of the session token in that secret. Empty: there is none.")
    access_key_id: str = Field("", description="The id itself, for development only: it ends up in Helm's records.")
    secret_access_key: str = Field("", description="The key itself, for development only.")
    ca: CaValues = CaValues()


class DataValues(HelmSection):
    """Where the pods find the data."""

    existing_claim: str = Field("", description="PersistentVolumeClaim with the BIDS folder, mounted read-only.")
    sub_path: str = Field("", description="Folder in that volume. Empty: its root.")
    mount_path: Annotated[str, Field(pattern=r"^/")] = Field("/data", description="Where it is mounted.")
    prepare: Literal["init", "hook", "none"] = Field(
        "init",
        description="`init`: an init container of each worker prepares the data, or fetches what another published; "
        "`hook`: a Job without GPUs does before the workers exist; `none`: the launcher does, in the worker itself.",
    )
    resources: KubernetesObject = Field({}, description="Requests and limits of preparing. {}: the worker's, no GPUs.")
    hook_deadline_seconds: Seconds = Field(86400, description="The hook fails after this.")
    hub_offline: bool = Field(False, description="Never ask a model hub (HF_HUB_OFFLINE); models must be local.")


class CacheValues(HelmSection):
    """Room on the node: prepared datasets, models, temporary files."""

    size_limit: Quantity = Field("100Gi", description="Size of /cache, an emptyDir; a pod above it is evicted.")
    existing_claim: str = Field("", description="Claim to use for /cache instead; workers share it (ReadWriteMany).")
    tmp_size_limit: Quantity = Field("5Gi", description="Size of /tmp, an emptyDir.")
    host_path: NoHostPath = None


class SchedulingValues(HelmSection):
    """Who decides when and where workers run."""

    scheduler_name: str = Field("", description="Another scheduler for the workers.")
    priority_class_name: str = Field("", description="Their priority class.")
    runtime_class_name: str = Field("", description="Their runtime class, for instance `nvidia`.")
    queue: str = Field(
        "", description="Kueue's local queue: label `kueue.x-k8s.io/queue-name`. Kueue suspends the job."
    )
    suspend: bool | None = Field(
        None, description="true: created, but no pods until it is false. null: not said, as Kueue wants it."
    )
    gang: KubernetesObject = Field(
        {},
        description="`runPolicy.schedulingPolicy` (minAvailable, queue, priorityClass, minResources, "
        "scheduleTimeoutSeconds), for an operator that runs with a gang scheduler.",
    )


class RendezvousValues(HelmSection):
    """Who hosts the store in which workers find each other."""

    mode: Literal["auto", "pod", "worker"] = Field(
        "auto",
        description="`pod`: a small pod of its own, so that no worker is special; `worker`: worker-0, whose loss then "
        "ends everybody; `auto`: a pod where `workers.max` is above 1.",
    )
    port: Port = Field(29400, description="Its port.")
    resources: KubernetesObject = Field({}, description="Its requests and limits.")
    node_selector: Strings = Field({}, description="Labels of nodes that may run it.")
    tolerations: KubernetesObjects = Field([], description="Taints that it tolerates.")
    affinity: KubernetesObject = Field({}, description="Its affinity.")
    priority_class_name: str = Field("", description="Its priority class.")


class SigningValues(HelmSection):
    """Signatures of accepted checkpoints. The key is mounted into the verification pod, and into no other."""

    existing_secret: str = Field("", description="Secret with the private key. Empty: nothing is signed.")
    key: str = Field(
        "signing.pem", pattern=r"^[-._a-zA-Z0-9]+$", description="The secret's entry: an Ed25519 key in PEM."
    )


class VerifyValues(HelmSection):
    """The verification pod. How it judges stands in `config.verify`."""

    enabled: bool = Field(True, description="Verify in the cluster.")
    resources: KubernetesObject = Field({}, description="Its requests and limits.")
    mount_data: bool = Field(False, description="Mount the data volume here too; it must allow a second node.")
    backoff_limit: Annotated[int, Field(ge=0)] = Field(3, description="Tries, if the pod could not judge.")
    active_deadline_seconds: Seconds | None = Field(None, description="The verifier ends after this. null: never.")
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Its Job, and so its verdict in `kubectl`, is deleted after this. null: never."
    )
    signing: SigningValues = SigningValues()
    service_account: ServiceAccountValues = ServiceAccountValues()
    node_selector: Strings = Field({}, description="Labels of nodes that may run it.")
    tolerations: KubernetesObjects = Field([], description="Taints that it tolerates.")
    affinity: KubernetesObject = Field({}, description="Its affinity.")
    priority_class_name: str = Field("", description="Its priority class.")


class PodMonitorValues(HelmSection):
    """How Prometheus scrapes the pods."""

    enabled: bool = Field(True, description="Create a PodMonitor.")
    interval: str = Field("", description="Time between scrapes, for instance `15s`. Empty: Prometheus's own.")
    scrape_timeout: str = Field("", description="Time that a scrape may take. Empty: Prometheus's own.")


class RulesValues(HelmSection):
    """Alerts and recording rules."""

    enabled: bool = Field(True, description="Create a PrometheusRule.")


class DashboardsValues(HelmSection):
    """Dashboards for Grafana's sidecar."""

    enabled: bool = Field(True, description="Create one ConfigMap a dashboard.")
    label: str = Field("grafana_dashboard", description="Label that Grafana's sidecar looks for.")
    label_value: str = Field("1", description="Its value.")
    folder: str = Field("giblet", description="Grafana folder (annotation `grafana_folder`).")
    namespace: str = Field("", description="Where Grafana's sidecar looks. Empty: the release's namespace.")


class MonitoringValues(HelmSection):
    """What Prometheus and Grafana find."""

    enabled: bool = Field(True, description="PodMonitor, rules and dashboards, where their APIs exist.")
    force: bool = Field(False, description="Render them even where the API cannot be seen (GitOps, `helm template`).")
    labels: Strings = Field({}, description="Labels that your Prometheus selects by.")
    pod_monitor: PodMonitorValues = PodMonitorValues()
    rules: RulesValues = RulesValues()
    dashboards: DashboardsValues = DashboardsValues()


class NetworkPolicyValues(HelmSection):
    """Who may talk to the pods, and to whom they may talk."""

    enabled: bool = Field(True, description="Create NetworkPolicies; nothing else gets in or out.")
    https: bool = Field(True, description="Pods may reach port 443 anywhere: S3, model hubs.")
    s3_ports: list[Port] = Field([], description="Ports of S3. []: the one of `config.checkpoint.endpoint_url`.")
    s3_to: KubernetesObjects = Field([], description="NetworkPolicy peers that are S3. []: anywhere, those ports.")
    api_server_ports: list[Port] = Field(
        [443, 6443], min_length=1, description="Ports of the API server, for the verifier."
    )
    api_server_to: KubernetesObjects = Field([], description="Its peers. []: anywhere, those ports.")
    metrics_from: KubernetesObjects = Field([], description="Peers that may scrape. []: anybody.")
    extra_ingress: KubernetesObjects = Field([], description="More ingress rules of all pods.")
    extra_egress: KubernetesObjects = Field([], description="More egress rules of all pods.")


class DisruptionValues(HelmSection):
    """What a drain may take away."""

    enabled: bool = Field(
        True, description="Where `workers.max` is above 1, keep `workers.min` workers while nodes are drained."
    )


class TestValues(HelmSection):
    """`helm test`."""

    enabled: bool = Field(True, description="Have a test pod.")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="So many GPUs it asks for, and fails if it sees fewer.")
    resources: KubernetesObject = Field({}, description="Its requests and limits.")


class UpgradeValues(HelmSection):
    """What `helm upgrade` may do to a job that exists."""

    allow: bool = Field(
        False,
        description="true: change the job's template though pods that run keep the old one. Rarely what you want: "
        "delete the job first (the refusal says how); the run goes on from its last checkpoint.",
    )
