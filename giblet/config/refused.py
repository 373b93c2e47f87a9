"""Keys of a values file that people know from elsewhere and that must stay away, each with its reason and remedy."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class Refused:
    """Marks a key that people know from elsewhere and that must stay away; the reason ends with the remedy."""

    def __init__(self, reason: str) -> None:
        self.reason = f"refused: {reason}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._refuse)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": [None, self.reason]}  # Helm prints the values it allows, and so the reason.

    def _refuse(self, value: object) -> None:
        if value is not None:
            raise ValueError(self.reason)


class Moved(Refused):
    """Marks a key under its name in other charts."""

    def __init__(self, here: str) -> None:
        super().__init__(f"here it is {here}")


NoStandalone = Annotated[
    None,
    Refused(
        "with --standalone torchrun ignores the operator's rendezvous, and each worker would train a run of its "
        "own; leave it out"
    ),
]
NoNprocPerNode = Annotated[
    None,
    Refused(
        "the operator's nprocPerNode is a string, and a number fails in the API server; write gpusPerWorker or "
        "processesPerWorker"
    ),
]
NoElasticMetrics = Annotated[
    None,
    Refused(
        "elasticPolicy.metrics makes a HorizontalPodAutoscaler that fights the launcher for the number of workers; "
        "set replicas, min and max"
    ),
]
NoAutoscaling = Annotated[
    None, Refused("an autoscaler would fight the launcher for the number of workers; set replicas, min and max")
]
NoHostPath = Annotated[
    None, Refused("Pod Security `restricted` admits no hostPath; use existingClaim, for instance of a local volume")
]
NoMaster = Annotated[
    None,
    Refused(
        "with a Master beside elastic workers the operator's count of nodes is wrong; leave it out: all are workers"
    ),
]
NoHostNetwork = Annotated[None, Refused("Pod Security `restricted` admits no host network; leave it out")]
NoHostIpc = Annotated[
    None, Refused("Pod Security `restricted` admits no host IPC; workers.sharedMemory is memory that ranks share")
]
NoHostPid = Annotated[None, Refused("Pod Security `restricted` admits no host process ids; leave it out")]
NoExtraContainers = Annotated[
    None,
    Refused(
        "a container that does not end keeps its worker from ending; use extraInitContainers with "
        "`restartPolicy: Always`"
    ),
]

NOT_WITH_EXIT_CODE = {
    "ttlSecondsAfterFinished": "refused: workers.ttlSecondsAfterFinished with restartPolicy ExitCode: the operator "
    "records no completion time for a job that fails by its exit code, and then stumbles over the TTL; unset it, or "
    "choose OnFailure",
    "backoffLimit": "refused: workers.backoffLimit with restartPolicy ExitCode, under which the operator never counts "
    "up to it; unset it: workers.maxRestarts is the budget",
}
