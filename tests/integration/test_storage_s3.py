"""The S3 store against a real server, and against servers that misbehave."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from giblet.config.schema import CheckpointConfig
from giblet.errors import ConfigError, GibletError, StorageDeniedError, StorageUnavailableError
from giblet.storage import Storage, open_storage
from giblet.storage.embedded import EmbeddedServer
from giblet.storage.s3 import S3Storage
from giblet.storage.s3_multipart import checksum
from tests.support.s3 import HASTY, dead_endpoint, failing_endpoint, hasty_storage, silent_endpoint
from tests.support.storage_conformance import CASES, BrokenBody

pytestmark = pytest.mark.s3
SECRET = "k3ep-this-to-yourself"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_store(case: Callable[[Storage], None], s3_server: EmbeddedServer) -> None:
    store = s3_server.storage("conformance", prefix=case.__name__)
    assert isinstance(store, Storage)
    case(store)
    assert store.clean_unfinished(older_than_seconds=0) == 0, "an unfinished upload is left over"


def test_two_prefixes_do_not_see_each_other(s3_server: EmbeddedServer) -> None:
    one, two = s3_server.storage("prefixes", "one"), s3_server.storage("prefixes", "one-and-a-half/")
    one.put("x", b"1")
    two.put("x", b"2")
    assert [info.key for info in one.list()] == ["x"]
    assert one.get("x") == b"1"
    assert one.url == "s3://prefixes/one"


def test_listing_goes_on_beyond_one_page(s3_server: EmbeddedServer) -> None:
    store = s3_server.storage("pages")
    for number in range(1005):
        store.put(f"k{number:05d}", b"")
    assert [info.key for info in store.list()] == [f"k{number:05d}" for number in range(1005)]


def test_wrong_secret_is_denied_and_never_shown(s3_server: EmbeddedServer) -> None:
    wrong = {"aws_access_key_id": s3_server.access_key, "aws_secret_access_key": SECRET}
    store = S3Storage.open("s3://giblet", s3_server.config(), credentials=wrong)
    _assert_refused(lambda: store.put("x", b"1"), StorageDeniedError, 78, s3_server.endpoint_url, "secret")
    _assert_refused(lambda: store.head("x"), StorageDeniedError, 78, s3_server.endpoint_url)
    _assert_refused(lambda: list(store.list()), StorageDeniedError, 78, s3_server.endpoint_url)


def test_unknown_access_key_is_denied(s3_server: EmbeddedServer) -> None:
    wrong = {"aws_access_key_id": "nobody", "aws_secret_access_key": SECRET}
    store = S3Storage.open("s3://giblet", s3_server.config(), credentials=wrong)
    _assert_refused(lambda: store.get("x"), StorageDeniedError, 78, "AWS_ACCESS_KEY_ID")


def test_no_credentials_at_all_is_denied(
    s3_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = open_storage("s3://giblet", s3_server.config())
    _assert_refused(lambda: store.put("x", b"1"), StorageDeniedError, 78, "AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize("call", ["put", "get", "head", "list"])
def test_missing_bucket_is_denied(call: str, s3_server: EmbeddedServer) -> None:
    store = hasty_storage(s3_server, "no-such-bucket")
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: store.put("x", b"1"),
        "get": lambda: store.get("x"),
        "head": lambda: store.head("x"),
        "list": lambda: list(store.list()),
    }
    _assert_refused(calls[call], StorageDeniedError, 78, "no-such-bucket", "create the bucket")


def test_dead_endpoint_is_unavailable() -> None:
    with dead_endpoint() as url:
        store = _store_at(url)
        _assert_refused(lambda: store.put("x", b"1"), StorageUnavailableError, 129, url)


def test_hanging_endpoint_is_unavailable_within_the_timeouts() -> None:
    with silent_endpoint() as url:
        store = _store_at(url)
        started = time.monotonic()
        _assert_refused(lambda: store.get("x"), StorageUnavailableError, 129, url, "read_timeout_seconds")
        # two attempts of half a second, one pause of at most a second between
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")])
def test_a_server_in_trouble_is_unavailable(status: int, code: str) -> None:
    with failing_endpoint(status, code) as url:
        store = _store_at(url)
        _assert_refused(lambda: store.put("x", b"1"), StorageUnavailableError, 129, code, str(status))


def test_a_failed_multipart_upload_is_aborted(s3_server: EmbeddedServer) -> None:
    store = s3_server.storage("abort")
    with pytest.raises(RuntimeError):
        store.put("big", BrokenBody(bytes(70 << 20), at_most=16 << 20))
    answer = store._client.list_multipart_uploads(Bucket="abort")
    assert answer.get("Uploads", []) == []


def test_a_stale_multipart_upload_is_cleaned(s3_server: EmbeddedServer) -> None:
    store = s3_server.storage("stale", "mine")
    for name in ("mine/runs/a", "other/b"):
        upload = store._client.create_multipart_upload(Bucket="stale", Key=name)["UploadId"]
        store._client.upload_part(Bucket="stale", Key=name, UploadId=upload, PartNumber=1, Body=b"x" * (5 << 20))
    assert store.clean_unfinished(older_than_seconds=3600) == 0
    assert store.clean_unfinished(older_than_seconds=-60) == 1
    left = store._client.list_multipart_uploads(Bucket="stale").get("Uploads", [])
    assert [upload["Key"] for upload in left] == ["other/b"]


def test_a_part_damaged_on_the_way_is_refused(s3_server: EmbeddedServer) -> None:
    store = s3_server.storage("checksums")
    with pytest.raises(Exception, match=r"BadDigest|InvalidDigest|XAmzContentChecksumMismatch"):
        store._client.put_object(Bucket="checksums", Key="x", Body=b"damaged", ChecksumCRC32C=checksum(b"whole"))


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix"])
def test_an_address_without_a_bucket_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        open_storage(url, CheckpointConfig())


def test_a_stream_put_is_bounded_in_memory(s3_server: EmbeddedServer) -> None:
    store = s3_server.storage("memory")
    body = _CountingBody(160 << 20)
    store.put("big", body)
    assert body.largest_read <= 32 << 20


def test_buffers_are_used_again_and_nothing_of_an_earlier_body_is_sent(s3_server: EmbeddedServer) -> None:
    store = s3_server.storage("again")
    store.put("first", io.BytesIO(b"1" * (100 << 20)))
    kept = {id(buffer) for buffer in store._buffers}
    second = bytes(range(256)) * (41 << 12) + b"end"
    store.put("second", io.BytesIO(second))
    store.put("small", io.BytesIO(b"3"))
    assert store.get("second") == second
    assert store.get("small") == b"3"
    assert {id(buffer) for buffer in store._buffers} == kept
    assert 1 <= len(kept) <= 3


class _CountingBody(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self._left, self.largest_read = size, 0

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        self.largest_read = max(self.largest_read, size)
        self._left -= size
        return bytes(size)


def _store_at(url: str) -> S3Storage:
    config = CheckpointConfig(url="s3://giblet", endpoint_url=url).model_copy(update=HASTY)
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": SECRET}
    return S3Storage.open("s3://giblet", config, credentials=keys)


def _assert_refused(call: Callable[[], object], kind: type[GibletError], code: int, *words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.exit_code == code
    assert caught.value.remedy
    told = str(caught.value)
    assert SECRET not in told
    assert SECRET not in json.dumps(repr(caught.value.__cause__))
    assert caught.value.__suppress_context__, "the chained boto3 error would be printed too"
    for word in words:
        assert word in told
