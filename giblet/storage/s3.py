"""A bucket as a store, through boto3: any S3-compatible server.

Credentials come only from where boto3 looks (environment, files, workload identity), or from the embedded server's
own file. A big body goes up in parts while it is read, a few parts at a time, and leaves nothing behind on an error.
Every part is signed with its SHA-256 over plain HTTP, and carries its CRC-32C, which the server checks.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlparse

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from giblet.config.schema import CheckpointConfig
from giblet.errors import ConfigError, StorageDeniedError
from giblet.storage.base import (
    ConditionRefusedError,
    ObjectInfo,
    Observer,
    PreconditionFailedError,
    checked_key,
    checked_range,
)
from giblet.storage.s3_clock import correct_clock
from giblet.storage.s3_errors import AUTHORITY_REMEDY, Where, explain
from giblet.storage.s3_multipart import MultipartUpload, Parts, checksum
from giblet.storage.s3_watch import watch_client

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

READ_BYTES = 1 << 20
T = TypeVar("T")
_BUCKET_IS_OURS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


class S3Storage:
    """Objects in `bucket` under `prefix`. Safe between threads.

    Raises `StorageDeniedError` (wrong secret, no permission, no such bucket), `StorageUnavailableError` (no answer, or
    the server's own fault) or `OutOfSpaceError`, each naming bucket and endpoint and never a secret.
    """

    def __init__(self, client: S3Client, bucket: str, prefix: str = "", *, encryption: str | None = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self.endpoint_url = client.meta.endpoint_url
        self._client = client
        self._where = Where(bucket, self.endpoint_url)
        self._options: dict[str, Any] = {"ServerSideEncryption": encryption} if encryption else {}
        self._attempts = client.meta.config.retries.get("total_max_attempts", 1)  # type: ignore[attr-defined]
        self._bucket_exists = threading.Event()
        self._buffers: list[bytearray] = []

    @classmethod
    def open(cls, url: str, config: CheckpointConfig, *, credentials: dict[str, str] | None = None) -> S3Storage:
        """The store at `s3://bucket/prefix` with the configuration's endpoint, timeouts and so on; no request is made.

        `credentials` replace boto3's own search; keys as boto3's `client` names them.
        Raises `ConfigError` for another address, and `StorageDeniedError` where credentials cannot even be looked for,
        or authorities not read.
        """
        address = urlparse(url)
        if address.scheme != "s3" or not address.netloc:
            raise ConfigError(f"checkpoint.url: {url!r} is no S3 address", remedy="write s3://bucket/prefix")
        endpoint = config.endpoint_url
        if endpoint == "embedded":
            from giblet.storage.embedded import running_server

            server = running_server(config.embedded_dir)
            endpoint, credentials = server.endpoint_url, server.credentials()
        where = Where(address.netloc, endpoint or "AWS")
        if not (endpoint or "").startswith("http://"):
            _check_bundle(config.ca_file or os.environ.get("AWS_CA_BUNDLE"))
        found: dict[str, Any] = dict(credentials or {})
        try:
            client = boto3.session.Session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=config.region or ("us-east-1" if endpoint else None),
                verify=config.ca_file,
                config=_client_config(config),
                **found,
            )
        except (BotoCoreError, ValueError) as error:
            raise explain(error, "open", "", where) from None
        correct_clock(client)
        return cls(client, address.netloc, address.path, encryption=config.server_side_encryption)

    def put(self, key: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> int:
        """See `Storage.put`. Beyond `PART_BYTES` it is a multipart upload, aborted on any error."""
        name = self.prefix + checked_key(key)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        body_parts = Parts(body, self._buffers)
        parts = iter(body_parts)
        first, second = next(parts), next(parts, None)
        with self._translated("write", key, conditional=if_absent):
            if second is None:
                self._client.put_object(
                    Bucket=self.bucket, Key=name, Body=first, ChecksumCRC32C=checksum(first),  # type: ignore[arg-type]
                    **condition, **self._options,
                )  # fmt: skip
                return len(first)
            upload = MultipartUpload(self._client, self.bucket, name, self._options)
            return upload.run(itertools.chain((first, second), parts), body_parts.give_back, condition)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Storage.get`. An answer that breaks off is asked for again."""
        checked_range(start, stop)
        if start == stop:
            if self.head(key) is None:
                raise KeyError(key)
            return b""
        return self._read(key, start, stop, lambda body: bytes(body.read()), b"")

    def get_into(self, key: str, start: int, places: Sequence[memoryview]) -> int:
        """See `Scattering`. An answer that breaks off is asked for again."""
        size = sum(len(place) for place in places)
        if not size:
            return len(self.get(key, start, start))
        return self._read(key, start, start + size, lambda body: _scatter(body, places), 0)

    def _read(self, key: str, start: int, stop: int | None, take: Callable[[StreamingBody], T], nothing: T) -> T:
        """What `take` makes of the bytes `[start, stop)`; `nothing` where the object ends before them."""
        name = self.prefix + checked_key(key)
        span: Any = (
            {} if start == 0 and stop is None else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        )
        with self._translated("read", key):
            for attempt in range(1, self._attempts + 1):
                try:
                    return take(self._client.get_object(Bucket=self.bucket, Key=name, **span)["Body"])
                except ClientError as error:
                    if error.response.get("Error", {}).get("Code") in ("InvalidRange", "416"):
                        return nothing
                    raise
                except (BotoCoreError, HTTPError):
                    if attempt == self._attempts:
                        raise
        raise AssertionError("unreachable")

    def head(self, key: str) -> ObjectInfo | None:
        """See `Storage.head`."""
        name = self.prefix + checked_key(key)
        try:
            with self._translated("look at", key):
                answer = self._client.head_object(Bucket=self.bucket, Key=name)
        except KeyError:
            return None
        return ObjectInfo(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.list`. Sorted here: SeaweedFS orders by folder, not by key."""
        found = []
        with self._translated("list", prefix or "everything"):
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            ):
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self.prefix)
                    found.append(ObjectInfo(key, entry["Size"], entry["LastModified"].timestamp()))
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        name = self.prefix + checked_key(key)
        with contextlib.suppress(KeyError), self._translated("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=name)

    def clean_unfinished(self, prefix: str = "", *, older_than_seconds: float = 86400.0) -> int:
        """See `Cleanable`: aborts multipart uploads."""
        oldest = datetime.datetime.now(tz=datetime.UTC) - datetime.timedelta(seconds=older_than_seconds)
        aborted = 0
        with self._translated("clean", prefix or "everything"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            stale = [u for page in pages for u in page.get("Uploads", ()) if u["Initiated"] <= oldest]
            for upload in stale:
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                aborted += 1
        return aborted

    def watch(self, observe: Observer) -> None:
        """See `Watchable`."""
        watch_client(self._client, observe)

    def is_reachable(self) -> bool:
        """Does a server answer, and accept these credentials."""
        try:
            self._client.list_buckets()
        except (BotoCoreError, ClientError, HTTPError):
            return False
        return True

    def create_bucket(self) -> None:
        """Make the bucket; no error if it is ours already."""
        with self._translated("create", "the bucket"):
            try:
                self._client.create_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in _BUCKET_IS_OURS:
                    raise

    @contextlib.contextmanager
    def _translated(self, doing: str, key: str, *, conditional: bool = False) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise PreconditionFailedError(key) from None
            if conditional and status == 501:
                raise ConditionRefusedError(f"{self._where}: refuses conditional puts: {code} (HTTP 501)") from None
            if code == "NoSuchKey" or (status == 404 and code in ("404", "NotFound") and self._has_bucket()):
                raise KeyError(key) from None
            raise explain(error, doing, key, self._where) from None
        except (BotoCoreError, HTTPError) as error:
            raise explain(error, doing, key, self._where) from None

    def _has_bucket(self) -> bool:
        """HEAD answers 404 for a missing key and a missing bucket alike: ask once which it is."""
        if not self._bucket_exists.is_set():
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404
            self._bucket_exists.set()
        return True


def _check_bundle(path: str | None) -> None:
    """boto3 says only at the first request that there is no such file, and not which."""
    if not path:
        return
    try:
        folder = Path(path).is_dir()
        ssl.create_default_context(cafile=None if folder else path, capath=path if folder else None)
    except OSError as error:  # an SSLError is one
        what = f"{path}: no certificates can be read from it ({error.strerror or error})"
        raise StorageDeniedError(what, remedy=AUTHORITY_REMEDY) from None


def _client_config(config: CheckpointConfig) -> Config:
    return Config(
        connect_timeout=config.connect_timeout_seconds,
        read_timeout=config.read_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": config.max_attempts},
        max_pool_connections=16,
        s3={"addressing_style": "path" if config.path_style else "virtual"},
        # boto3's own default checksums cost more than the signature; the CRC-32C we pass ourselves replaces them
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def _scatter(body: StreamingBody, places: Sequence[memoryview]) -> int:
    """Small reads stay in the processor's cache, where the library's own copy costs little."""
    at = 0
    for place in places:
        filled = 0
        while filled < len(place):
            got = body.readinto(place[filled : filled + READ_BYTES])  # type: ignore[arg-type]
            if not got:
                break
            filled += got
        at += filled
        if filled < len(place):
            break
    return at
