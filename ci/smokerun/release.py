"""The release: what helm would install, installing it, taking it away again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from charttools.tools import ChartTools
from localcluster.settings import REPOSITORY
from localcluster.shell import ClusterError, run

from giblet.config import GibletConfig
from smokerun.errors import CannotStartError, SmokeError, ValuesError

CHART = REPOSITORY / "helm/giblet"
_DATA_KEYS = ("config.data.prepared", "data.existingClaim")


@dataclass(frozen=True)
class Values:
    """Values files and settings, in the order in which helm merges them."""

    files: tuple[Path, ...]
    settings: tuple[str, ...] = ()
    overlay: tuple[tuple[str, Any], ...] = ()
    """Dotted keys that ci/smoke sets itself, above all else."""

    def words(self) -> list[str]:
        """Their part of a helm command."""
        found = [word for file in self.files for word in ("--values", str(file))]
        found += [word for setting in self.settings for word in ("--set", setting)]
        return found + [word for key, value in self.overlay for word in ("--set-json", f"{key}={json.dumps(value)}")]

    @property
    def name_data(self) -> bool:
        """Whether they say where the data is; the placeholders of configs/ do not."""
        named = [_dig(yaml.safe_load(file.read_text()) or {}, key) for file in self.files for key in _DATA_KEYS]
        settings = [*self.settings, *(f"{key}={value}" for key, value in self.overlay)]
        return any(value and "your-bucket" not in str(value) for value in named) or any(
            setting.startswith(_DATA_KEYS) for setting in settings
        )


@dataclass(frozen=True)
class Release:
    """One helm release."""

    name: str
    namespace: str
    context: str | None
    values: Values

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """What would be installed, without asking the cluster. Raises ValuesError with helm's own words."""
        try:
            text = run([_helm(), "template", self.name, CHART, "--namespace", self.namespace, *self.values.words()])
        except ClusterError as error:
            raise ValuesError(_helm_words(error)) from None
        return [item for item in yaml.safe_load_all(text) if item]

    def one(self, kind: str, suffix: str = "") -> dict[str, Any] | None:
        """The object of a kind whose name ends so, if there is one."""
        found = [o for o in self.objects if o["kind"] == kind and o["metadata"]["name"].endswith(suffix)]
        return found[0] if found else None

    @property
    def job(self) -> str:
        """The PyTorchJob's name."""
        job = self.one("PyTorchJob")
        if job is None:
            raise ValuesError("these values render no PyTorchJob")
        return str(job["metadata"]["name"])

    @property
    def verifies(self) -> bool:
        """Whether there is a verification Job."""
        return self.one("Job", "-verify") is not None

    @property
    def fewest_workers(self) -> int:
        """So many workers are enough for the run to go on."""
        job = self.one("PyTorchJob") or {}
        return int(_dig(job, "spec.elasticPolicy.minReplicas") or 1)

    @cached_property
    def config(self) -> GibletConfig:
        """The trainer's configuration, as the pods will read it."""
        rendered = self.one("ConfigMap", "-config")
        if rendered is None:
            raise ValuesError("these values render no configuration")
        return GibletConfig.model_validate(yaml.safe_load(rendered["data"]["giblet.yaml"])["config"])

    def secrets(self) -> dict[str, set[str]]:
        """Secrets that must be there already, with the keys that the pods read."""
        own = {item["metadata"]["name"] for item in self.objects if item["kind"] == "Secret"}
        found: dict[str, set[str]] = {}
        for reference in _references(self.objects, "secretKeyRef"):
            if reference["name"] not in own and not reference.get("optional"):
                found.setdefault(reference["name"], set()).add(reference["key"])
        return found

    def credentials(self) -> dict[str, tuple[str, str]]:
        """Environment variables that the workers take from a secret: its name and key."""
        for holder in _references(self.objects, "template"):
            for container in _dig(holder, "spec.containers") or []:
                if container["name"] == "pytorch":
                    taken = {item["name"]: _dig(item, "valueFrom.secretKeyRef") for item in container.get("env", [])}
                    return {name: (found["name"], found["key"]) for name, found in taken.items() if found}
        return {}

    def install(self) -> None:
        """Create it. Raises ValuesError or CannotStartError with helm's own words."""
        try:
            run([*self._helm("install"), self.name, str(CHART), *self.values.words()])
        except ClusterError as error:
            said = _helm_words(error)
            kind = ValuesError if "These values cannot work" in said else CannotStartError
            raise kind(said) from None

    def uninstall(self) -> None:
        """Have all of it taken away; no error if there is nothing.

        Not with --wait: helm 4's returns too early at times (helm issue 31651), or never (31766).
        """
        try:
            run([*self._helm("uninstall"), self.name, "--ignore-not-found"])
        except ClusterError as error:
            remedy = f"helm -n {self.namespace} uninstall {self.name}"
            raise SmokeError(f"cleaning up failed: {_helm_words(error)}", remedy=remedy) from None

    def _helm(self, verb: str) -> list[str]:
        context = ["--kube-context", self.context] if self.context else []
        return [_helm(), verb, "--namespace", self.namespace, *context]


def with_image(reference: str) -> tuple[tuple[str, Any], ...]:
    """`REGISTRY/NAME[:TAG][@DIGEST]` as the chart's values."""
    found = re.fullmatch(r"(?P<name>[^@]+?)(?::(?P<tag>[\w][\w.-]*))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?", reference)
    if found is None:
        raise ValuesError(f"--image {reference} is not of the form REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:…")
    return (
        ("image.repository", found["name"]),
        ("image.tag", found["tag"] or ""),
        ("image.digest", found["digest"] or ""),
    )


def _helm() -> str:
    try:
        return str(ChartTools.default().helm)
    except ClusterError as error:
        raise ValuesError(f"helm is not to be had: {error}") from None


def _helm_words(error: ClusterError) -> str:
    """What helm said, without the command and without its own plumbing."""
    text = re.sub(r"^exit \d+ from: .*\n", "", str(error))
    text = re.sub(r"(?s)^\s*Error: (INSTALLATION FAILED: )?(execution error at \([^)]*\): )?", "", text)
    return re.sub(r"\n\s*Use --debug flag.*", "", text).strip()


def _references(item: Any, key: str) -> list[dict[str, Any]]:
    if isinstance(item, dict):
        own = [item[key]] if isinstance(item.get(key), dict) else []
        return own + [found for value in item.values() for found in _references(value, key)]
    if isinstance(item, Sequence) and not isinstance(item, str):
        return [found for value in item for found in _references(value, key)]
    return []


def _dig(values: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values
