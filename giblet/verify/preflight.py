"""Will a run work here? What `helm test` asks: storage, names, permissions, disk, GPUs. One line a check.

Every check tries the thing itself, cleans up after itself, and says what to do where it fails. A check whose ground
has failed (reading a bucket that does not answer) is skipped.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from giblet.config.schema import GibletConfig
from giblet.errors import (
    ConfigError,
    DataError,
    DependencyError,
    GibletError,
    OutOfSpaceError,
    StorageDeniedError,
    StorageUnavailableError,
)
from giblet.storage import ConditionRefusedError, PreconditionFailedError, Storage, open_storage

PROBE_PREFIX = "preflight"
SMALLEST_CACHE_BYTES = 1 << 30
"""Free space asked for where the prepared dataset's size is not known."""
Status = Literal["ok", "FAIL", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `exit_code` is that of the kind of failure, 0 if there is none."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Permission:
    """A question to the Kubernetes API: may this service account do that?"""

    verb: str
    group: str
    resource: str
    name: str = ""


class _Skip(Exception):  # noqa: N818
    """A check that cannot be made here; says why."""


def preflight(
    config: GibletConfig,
    *,
    gpus: int | None = None,
    storage: Storage | None = None,
    may: Callable[[Permission], bool] | None = None,
    job: str = "",
) -> Iterator[Finding]:
    """Check after check, as they are made.

    `gpus` that must be visible (None: not asked). `may` answers for the Kubernetes API (None: not in a cluster); it
    raises a `GibletError` if that does not answer. `storage` is the store at `checkpoint.url`, found if None.
    """
    checks = _StorageChecks(config, storage)
    yield _tried("endpoint", lambda: _endpoint(config))
    for name, check in checks.all().items():
        yield _tried(name, check)
    yield _tried("cache", lambda: _cache(config))
    for permission in permissions_of_the_gate(job):
        yield _tried(f"may {permission.verb} {permission.resource}", functools.partial(_allowed, permission, may))
    if gpus is not None:
        yield _tried("gpus", lambda: _gpus(gpus))


def exit_code_of(findings: list[Finding]) -> int:
    """That of the first failure; 0 if there is none."""
    return next((finding.exit_code for finding in findings if finding.status == "FAIL"), 0)


def permissions_of_the_gate(job: str) -> list[Permission]:
    """What `giblet gate` asks of the API: to see and to annotate its own job, and to record events."""
    kinds = [Permission(verb, "kubeflow.org", "pytorchjobs", job) for verb in ("get", "patch")]
    return [*kinds, Permission("create", "", "events")]


def _tried(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except _Skip as skipped:
        return Finding(name, "skipped", str(skipped))
    except GibletError as error:
        return Finding(name, "FAIL", error.message, error.remedy or "", error.exit_code)
    except OSError as error:
        return Finding(name, "FAIL", str(error), "see the message", GibletError.exit_code)


def _endpoint(config: GibletConfig) -> str:
    """The endpoint's name has an address."""
    if not config.checkpoint.url.startswith("s3://"):
        raise _Skip(f"checkpoint.url {config.checkpoint.url} is a folder")
    named = (config.checkpoint.endpoint_url, os.environ.get("AWS_ENDPOINT_URL_S3"), os.environ.get("AWS_ENDPOINT_URL"))
    endpoint = next((name for name in named if name), None)
    if endpoint is None or endpoint == "embedded":
        raise _Skip(f"no endpoint is named: it is {'AWS' if endpoint is None else 'the embedded server'}")
    host = urlparse(endpoint).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError as error:
        raise StorageUnavailableError(
            f"{endpoint}: the name {host} has no address here ({error})",
            remedy="correct checkpoint.endpoint_url; in a cluster: <service>.<namespace>.svc, and a NetworkPolicy that "
            "allows DNS",
        ) from None
    return f"{host} is {', '.join(sorted({str(address[4][0]) for address in found}))}"


class _StorageChecks:
    """Read, write, conditional put, delete: on an object of their own."""

    def __init__(self, config: GibletConfig, storage: Storage | None) -> None:
        self._config, self._storage = config, storage
        self._key = f"{PROBE_PREFIX}/{uuid.uuid4().hex}"
        self._body = b"giblet preflight: may be deleted"
        self._written, self._failed = False, False

    def all(self) -> dict[str, Callable[[], str]]:
        """The checks in the order in which they build upon each other."""
        return {
            "bucket read": self._read, "bucket write": self._write,
            "bucket conditional put": self._conditional, "bucket delete": self._delete,
        }  # fmt: skip

    def _open(self) -> Storage:
        if self._storage is None:
            self._storage = open_storage(self._config.checkpoint.url, self._config.checkpoint)
        return self._storage

    def _read(self) -> str:
        try:
            storage = self._open()
            runs = sorted({info.key.split("/")[1] for info in storage.list("runs/")})
        except GibletError:
            self._failed = True
            raise
        return f"{storage.url} can be listed: {len(runs)} runs"

    def _write(self) -> str:
        if self._failed:
            raise _Skip("the bucket cannot be read")
        storage = self._open()
        storage.put(self._key, self._body)
        self._written = True
        if storage.get(self._key) != self._body:
            raise StorageDeniedError(
                f"{storage.url}/{self._key}: other bytes came back than were written",
                remedy="something between giblet and the server changes bodies; take it out of the way",
            )
        return f"{len(self._body)} bytes written and read back"

    def _conditional(self) -> str:
        if not self._written:
            raise _Skip("nothing could be written")
        storage, does = self._open(), "ignores"
        try:
            storage.put(self._key, b"must not be there", if_absent=True)
        except PreconditionFailedError:
            return "the server refuses to overwrite where it is asked to (If-None-Match)"
        except ConditionRefusedError:
            does = "knows no"
        raise ConfigError(
            f"{storage.url}: the server {does} If-None-Match, so two starts of a run at one moment are told apart "
            "only by reading back",
            remedy="use a server that honours conditional puts (AWS S3, SeaweedFS, MinIO, Ceph from Squid on)",
        )

    def _delete(self) -> str:
        if not self._written:
            raise _Skip("nothing could be written")
        storage = self._open()
        storage.delete(self._key)
        if storage.head(self._key) is not None:
            raise StorageDeniedError(
                f"{storage.url}/{self._key}: it is still there after it was deleted",
                remedy="allow deletes: retention removes old checkpoints; a versioned bucket is fine",
            )
        return "its probe is removed again"


def _cache(config: GibletConfig) -> str:
    """`data.cache_dir` can be written, and has room for the dataset."""
    folder = Path(config.data.cache_dir)
    probe = folder / f".preflight-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir {folder}: cannot be written ({error.strerror})",
            remedy="mount a volume there that this user may write (fsGroup), or change data.cache_dir",
        ) from None
    known = _dataset_bytes(config)
    needed = SMALLEST_CACHE_BYTES if known is None else known
    free = shutil.disk_usage(folder).free
    told = f"{folder} has {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB are needed"
    if free < needed:
        raise OutOfSpaceError(told, remedy="give the cache volume more room, or change data.cache_dir")
    return told


def _dataset_bytes(config: GibletConfig) -> int | None:
    """How much of the prepared dataset is to be fetched; None where `data.prepared` names none in storage."""
    from giblet.data.ensure import published_place
    from giblet.data.transfer import dataset_key, is_published

    place = published_place(config)
    if place is None:
        return None
    storage, content_hash = place
    if (Path(config.data.cache_dir) / content_hash).is_dir():
        return 0
    if not is_published(storage, content_hash):
        raise DataError(
            f"data.prepared is {config.data.prepared}: there is no such prepared dataset",
            remedy="publish it, or correct data.prepared",
        )
    return sum(info.size_bytes for info in storage.list(dataset_key(content_hash)))


def _allowed(permission: Permission, may: Callable[[Permission], bool] | None) -> str:
    if may is None:
        raise _Skip("not in a cluster, or without a service account's token")
    what = f"{permission.verb} {permission.resource}{f' {permission.name}' if permission.name else ''}"
    if not may(permission):
        raise ConfigError(
            f"this service account may not {what}",
            remedy="the chart's Role of the verifier allows it: upgrade the release, or ask an administrator for it",
        )
    return "allowed"


def _gpus(wanted: int) -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < wanted:
        raise DependencyError(
            f"{count} GPUs are visible, {wanted} were asked for",
            remedy="request nvidia.com/gpu for this pod; on the node: driver, device plugin and container runtime",
        )
    return ", ".join(torch.cuda.get_device_name(index) for index in range(count)) or "none were asked for"


def kubernetes_may(namespace: str) -> Callable[[Permission], bool]:
    """Asks the API server about this pod's own service account. Raises `ConfigError` outside of a cluster."""
    from kubernetes import client

    from giblet.verify.jobs import JobsUnavailableError
    from giblet.verify.kubernetes_jobs import api_client, call

    reviews = client.AuthorizationV1Api(api_client())

    def may(permission: Permission) -> bool:
        asked: dict[str, Any] = {"verb": permission.verb, "group": permission.group, "resource": permission.resource}
        attributes = {**asked, "namespace": namespace, **({"name": permission.name} if permission.name else {})}
        body = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }  # fmt: skip
        try:
            return bool(call(reviews.create_self_subject_access_review, body).status.allowed)
        except JobsUnavailableError as error:
            raise StorageUnavailableError(
                str(error), remedy="check the network, and that the API server runs"
            ) from None

    return may
