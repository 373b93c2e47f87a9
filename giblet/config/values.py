"""The whole values file: Helm's own keys at the top (camelCase), the trainer's configuration under `config:`.

`helm/giblet/values.schema.json` is generated from `Values`. Rules between keys stand here and in the chart
(`templates/_validate.tpl`), because `giblet config check` and `helm install` are different doors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from giblet.config.quantity import quantity_value
from giblet.config.refused import (
    NOT_WITH_EXIT_CODE,
    Moved,
    NoExtraContainers,
    NoHostIpc,
    NoHostNetwork,
    NoHostPid,
    NoMaster,
)
from giblet.config.schema import GibletConfig
from giblet.config.values_sections import (
    CacheValues,
    DataValues,
    DisruptionValues,
    HelmSection,
    ImageValues,
    KubernetesObject,
    KubernetesObjects,
    MonitoringValues,
    NetworkPolicyValues,
    RendezvousValues,
    S3Values,
    SchedulingValues,
    ServiceAccountValues,
    Strings,
    TestValues,
    UpgradeValues,
    VerifyValues,
    WorkersValues,
)

LAST_WORDS_SECONDS = 20
"""After the last save a worker still keeps its log and the cause of its end (`giblet.launch`)."""


class Values(HelmSection):
    """A values file of the chart."""

    name_override: str = Field("", description="Replaces the chart's name in object names.")
    fullname_override: str = Field("", description="Replaces the whole name of the objects.")
    common_labels: Strings = Field({}, description="Labels of every object and pod.")
    image: ImageValues = ImageValues()
    image_pull_secrets: KubernetesObjects = Field([], description="Secrets to pull the image with.")
    workers: WorkersValues = WorkersValues()
    resources: KubernetesObject = Field(
        {}, description="Requests and limits of a worker; GPUs are added to the limits."
    )
    scheduling: SchedulingValues = SchedulingValues()
    node_selector: Strings = Field({}, description="Labels of nodes that may run workers.")
    tolerations: KubernetesObjects = Field([], description="Taints that workers tolerate.")
    affinity: KubernetesObject = Field({}, description="Affinity of workers.")
    topology_spread_constraints: KubernetesObjects = Field([], description="How workers spread over nodes.")
    pod_labels: Strings = Field({}, description="More labels of all pods.")
    pod_annotations: Strings = Field({}, description="More annotations of all pods.")
    pod_security_context: KubernetesObject = Field({}, description="Replaces keys of the pods' security context.")
    security_context: KubernetesObject = Field({}, description="Replaces keys of the containers' security context.")
    extra_env: KubernetesObjects = Field([], description="More environment variables, of all pods.")
    extra_env_from: KubernetesObjects = Field([], description="More sources of them.")
    extra_volumes: KubernetesObjects = Field([], description="More volumes of workers and verifier.")
    extra_volume_mounts: KubernetesObjects = Field([], description="Where they are mounted.")
    dns_policy: Literal["", "ClusterFirst", "Default", "None"] = Field(
        "", description="The pods' DNS policy; `None` wants `dnsConfig`. Empty: Kubernetes' own."
    )
    dns_config: KubernetesObject = Field({}, description="The pods' DNS settings: nameservers, searches, options.")
    host_aliases: KubernetesObjects = Field([], description="Names that the pods find without DNS, such as S3's.")
    extra_init_containers: KubernetesObjects = Field(
        [], description="More init containers of workers, before `prepare`; with `restartPolicy: Always` a sidecar."
    )
    service_account: ServiceAccountValues = ServiceAccountValues()
    s3: S3Values = S3Values()
    data: DataValues = DataValues()
    cache: CacheValues = CacheValues()
    rendezvous: RendezvousValues = RendezvousValues()
    verify: VerifyValues = VerifyValues()
    monitoring: MonitoringValues = MonitoringValues()
    network_policy: NetworkPolicyValues = NetworkPolicyValues()
    pod_disruption_budget: DisruptionValues = DisruptionValues()
    test: TestValues = TestValues()
    upgrade: UpgradeValues = UpgradeValues()
    config: GibletConfig = Field(GibletConfig(), description="The trainer's own configuration, mounted as a file.")
    global_: KubernetesObject = Field({}, alias="global", description="Helm's global values; unused.")
    master: NoMaster = None
    host_network: NoHostNetwork = None
    host_ipc: NoHostIpc = Field(None, alias="hostIPC")
    host_pid: NoHostPid = Field(None, alias="hostPID")
    replica_count: Annotated[None, Moved("workers.replicas")] = None
    env: Annotated[None, Moved("extraEnv")] = None
    env_from: Annotated[None, Moved("extraEnvFrom")] = None
    volumes: Annotated[None, Moved("extraVolumes")] = None
    volume_mounts: Annotated[None, Moved("extraVolumeMounts")] = None
    init_containers: Annotated[None, Moved("extraInitContainers")] = None
    sidecars: Annotated[None, Moved("extraInitContainers, with `restartPolicy: Always`")] = None
    priority_class_name: Annotated[None, Moved("scheduling.priorityClassName")] = None
    runtime_class_name: Annotated[None, Moved("scheduling.runtimeClassName")] = None
    scheduler_name: Annotated[None, Moved("scheduling.schedulerName")] = None
    extra_containers: NoExtraContainers = None

    @model_validator(mode="after")
    def _combinations(self) -> Values:
        faults = [*_worker_faults(self.workers), *_s3_faults(self.s3), *_resource_faults(self)]
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _worker_faults(workers: WorkersValues) -> list[str]:
    """Rules between the keys of `workers` that do not hold."""
    found = []
    if not workers.min <= workers.replicas <= workers.max:
        found.append(
            f"workers.min {workers.min} <= workers.replicas {workers.replicas} <= workers.max {workers.max} does not "
            "hold; put them in order"
        )
    if workers.gpus_per_worker and (workers.processes_per_worker or 0) > workers.gpus_per_worker:
        found.append(
            f"workers.processesPerWorker {workers.processes_per_worker} is above workers.gpusPerWorker "
            f"{workers.gpus_per_worker}: each process needs a GPU of its own; lower the one or raise the other"
        )
    if workers.restart_policy == "ExitCode":
        keys = {"ttlSecondsAfterFinished": workers.ttl_seconds_after_finished, "backoffLimit": workers.backoff_limit}
        found += [NOT_WITH_EXIT_CODE[key] for key, value in keys.items() if value is not None]
    if (workers.backoff_limit or 1000) <= workers.max_restarts:
        found.append(
            f"workers.backoffLimit {workers.backoff_limit or 1000} is not above workers.maxRestarts "
            f"{workers.max_restarts}: the operator would end the job before its own budget does; raise backoffLimit"
        )
    if not (
        workers.save_seconds < workers.shutdown_timeout_seconds
        and workers.shutdown_timeout_seconds + LAST_WORDS_SECONDS <= workers.termination_grace_period_seconds
    ):
        found.append(
            f"workers.saveSeconds {workers.save_seconds} < workers.shutdownTimeoutSeconds "
            f"{workers.shutdown_timeout_seconds}, and {LAST_WORDS_SECONDS} more <= "
            f"workers.terminationGracePeriodSeconds {workers.termination_grace_period_seconds}, does not hold: a "
            "worker that is told to stop would be killed in the middle of its last save; raise the later ones"
        )
    return found


def _s3_faults(s3: S3Values) -> list[str]:
    """Rules between the keys of `s3` that do not hold."""
    found = []
    if s3.existing_secret and (s3.access_key_id or s3.secret_access_key):
        found.append("s3.existingSecret and s3.accessKeyId are both set, and only one can be used; keep existingSecret")
    if bool(s3.access_key_id) != bool(s3.secret_access_key):
        found.append("s3.accessKeyId and s3.secretAccessKey belong together, and one is missing; set both or none")
    if s3.ca.secret and s3.ca.config_map:
        found.append("s3.ca.secret and s3.ca.configMap are both set, and only one can be mounted; keep one")
    return found


def _resource_faults(values: Values) -> list[str]:
    """Rules between a worker's resources and `workers` that do not hold."""
    found = []
    limits = values.resources.get("limits") or {}
    memory = quantity_value(limits.get("memory"))
    shared = quantity_value(values.workers.shared_memory)
    if memory is not None and shared is not None and shared >= memory:
        found.append(
            f"workers.sharedMemory {values.workers.shared_memory} is not below resources.limits.memory "
            f"{limits['memory']}, in which it counts; raise the limit or lower sharedMemory"
        )
    for kind in ("limits", "requests"):
        gpus = (values.resources.get(kind) or {}).get(values.workers.gpu_resource)
        if gpus is not None and str(gpus) != str(values.workers.gpus_per_worker):
            found.append(
                f"resources.{kind}.{values.workers.gpu_resource} is {gpus} and workers.gpusPerWorker "
                f"{values.workers.gpus_per_worker}; write only gpusPerWorker"
            )
    return found
