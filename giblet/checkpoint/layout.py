"""Where things lie under `checkpoint.url`: every key in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass

from giblet.errors import CheckpointError

MANIFEST = "MANIFEST.json"
QUARANTINE = "QUARANTINED.json"
SIGNATURE = "MANIFEST.json.sig"
_MANIFEST_KEY = re.compile(r"runs/(?P<run>[^/]+)/checkpoints/step-(?P<step>\d+)/(?P<attempt>[^/]+)/MANIFEST\.json")


@dataclass(frozen=True, slots=True, order=True)
class CheckpointRef:
    """One committed (or to be committed) checkpoint of a run. Sorts by step, then by attempt, which sorts by time."""

    step: int
    attempt: str
    run: str

    @property
    def prefix(self) -> str:
        """Its folder, with a slash at the end."""
        return f"{step_prefix(self.run, self.step)}{self.attempt}/"

    @property
    def manifest_key(self) -> str:
        """The object whose presence is the commit."""
        return self.prefix + MANIFEST

    @property
    def quarantine_key(self) -> str:
        """The marker that says: found bad, do not use."""
        return self.prefix + QUARANTINE

    @property
    def report_key(self) -> str:
        """Where verification writes what it found."""
        return f"{reports_prefix(self.run)}step-{self.step:08d}/{self.attempt}.json"

    @classmethod
    def of_manifest_key(cls, key: str) -> CheckpointRef | None:
        """The checkpoint whose manifest `key` is; None for any other key."""
        found = _MANIFEST_KEY.fullmatch(key)
        return cls(int(found["step"]), found["attempt"], found["run"]) if found else None


def run_key(run: str) -> str:
    """The resolved configuration the run began with."""
    return f"runs/{run}/run.json"


def starts_prefix(run: str) -> str:
    """One object a start."""
    return f"runs/{run}/starts/"


def start_key(run: str, number: int) -> str:
    """Start `number`, from 1."""
    return f"{starts_prefix(run)}{number}.json"


def end_key(run: str, number: int) -> str:
    """How start `number` ended."""
    return f"{starts_prefix(run)}{number}.end.json"


def start_number(key: str) -> int | None:
    """The number of a start's key; None for any other key."""
    name = key.rpartition("/")[2].removesuffix(".json")
    return int(name) if name.isdigit() else None


def checkpoints_prefix(run: str) -> str:
    """All checkpoints of a run."""
    return f"runs/{run}/checkpoints/"


def step_prefix(run: str, step: int) -> str:
    """All attempts at one step."""
    return f"{checkpoints_prefix(run)}step-{step:08d}/"


def reports_prefix(run: str) -> str:
    """What verification found, one object a checkpoint."""
    return f"runs/{run}/reports/"


def verified_key(run: str) -> str:
    """The pointer to the newest checkpoint that verification accepted."""
    return f"runs/{run}/verified.json"


def best_key(run: str) -> str:
    """The pointer to the checkpoint with the best validation score."""
    return f"runs/{run}/best.json"


def shard_name(rank: int) -> str:
    """A rank's file within a checkpoint."""
    return f"rank-{rank:05d}.safetensors"


def split_address(url: str) -> tuple[str, str]:
    """`<store>/runs/<run>…` → the store's address and the rest, from `runs/` on. Raises `CheckpointError`."""
    store, slash, rest = url.rstrip("/").rpartition("/runs/")
    if not slash:
        store, slash, rest = ("", "/", url.removeprefix("runs/")) if url.startswith("runs/") else (url, "", "")
    if not slash:
        raise CheckpointError(
            f"{url}: no address of a run or a checkpoint",
            remedy="write <checkpoint.url>/runs/<run>[/checkpoints/step-N]",
        )
    return store or ".", f"runs/{rest}"
