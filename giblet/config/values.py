"""The whole values file: Helm's own keys at the top (camelCase), the trainer's configuration under `config:`.

Only what decides whether a run can work is typed closely; what Kubernetes itself validates (affinity, tolerations)
passes through. `helm/giblet/values.schema.json` is generated from `Values`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from giblet.config.schema import Count, GibletConfig

KubernetesObject = dict[str, Any]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


class HelmSection(BaseModel):
    """A frozen group of Helm values that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


class ImageValues(HelmSection):
    """The trainer's image. None is published: build and push your own (docker/)."""

    repository: str = Field("", description="Registry and name of the image, without a tag.")
    tag: str = Field("", description="Tag of the image. Empty: the chart's appVersion.")
    digest: str = Field("", description="Digest (`sha256:…`); wins over the tag.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field("IfNotPresent", description="When to pull.")


class WorkersValues(HelmSection):
    """The elastic workers of the PyTorchJob."""

    replicas: Count = Field(1, description="Workers at the start.")
    min: Count = Field(1, description="Fewest workers that go on.")
    max: Count = Field(1, description="Most workers that join.")
    gpus_per_worker: Annotated[int, Field(ge=0)] = Field(8, description="GPUs, and so processes, of a worker; 0: CPU.")
    processes_per_worker: Count | None = Field(None, description="Processes of a worker. None: one a GPU, or 1.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(10, description="Restarts without a newly committed step.")

    @model_validator(mode="after")
    def _ordered(self) -> WorkersValues:
        if not self.min <= self.replicas <= self.max:
            raise ValueError(
                f"min {self.min} <= replicas {self.replicas} <= max {self.max} does not hold; put them in order"
            )
        if self.gpus_per_worker and (self.processes_per_worker or 0) > self.gpus_per_worker:
            raise ValueError(
                f"processesPerWorker {self.processes_per_worker} is above gpusPerWorker {self.gpus_per_worker}; "
                "each process needs a GPU of its own"
            )
        return self

    @property
    def processes(self) -> int:
        """Processes of one worker."""
        return self.processes_per_worker or max(self.gpus_per_worker, 1)


class ServiceAccountValues(HelmSection):
    """Who the pods are."""

    create: bool = Field(True, description="Create one.")
    name: str = Field("", description="Its name. Empty: the release's.")
    annotations: dict[str, str] = Field({}, description="For instance for workload identity.")


class VerifyValues(HelmSection):
    """The verification pod."""

    enabled: bool = Field(True, description="Verify in the cluster.")
    resources: KubernetesObject = Field({}, description="Its requests and limits.")


class MonitoringValues(HelmSection):
    """What Prometheus finds."""

    enabled: bool = Field(True, description="PodMonitor, rules and dashboards, where their APIs exist.")
    labels: dict[str, str] = Field({}, description="Labels that your Prometheus selects by.")


class NetworkPolicyValues(HelmSection):
    """Who may talk to the pods."""

    enabled: bool = Field(True, description="Create NetworkPolicies.")


class Values(HelmSection):
    """A values file of the chart."""

    name_override: str = Field("", description="Replaces the chart's name in object names.")
    fullname_override: str = Field("", description="Replaces the whole name of the objects.")
    image: ImageValues = ImageValues()
    image_pull_secrets: list[KubernetesObject] = Field([], description="Secrets to pull the image with.")
    workers: WorkersValues = WorkersValues()
    resources: KubernetesObject = Field({}, description="Requests and limits of a worker.")
    node_selector: dict[str, str] = Field({}, description="Labels of nodes that may run workers.")
    tolerations: list[KubernetesObject] = Field([], description="Taints that workers tolerate.")
    affinity: KubernetesObject = Field({}, description="Affinity of workers.")
    extra_env: list[KubernetesObject] = Field([], description="More environment variables of workers.")
    service_account: ServiceAccountValues = ServiceAccountValues()
    verify: VerifyValues = VerifyValues()
    monitoring: MonitoringValues = MonitoringValues()
    network_policy: NetworkPolicyValues = NetworkPolicyValues()
    config: GibletConfig = Field(GibletConfig(), description="The trainer's own configuration, mounted as a file.")
    global_: KubernetesObject = Field({}, alias="global", description="Helm's global values; unused.")
