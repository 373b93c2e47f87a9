"""One big object in parts: sent while they are read, a few at a time, each with its CRC-32C, none left on an error."""

from __future__ import annotations

import base64
import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from botocore.exceptions import BotoCoreError, ClientError

from giblet.errors import StorageDeniedError
from giblet.storage.base import fill
from giblet.storage.crc import crc32c

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 32 << 20
PARTS_IN_FLIGHT = 2
MOST_PARTS = 10_000
"""S3's own limit."""


Part: TypeAlias = bytes | bytearray


def checksum(data: Part) -> str:
    """CRC-32C as S3 writes it: big-endian, base64."""
    return base64.b64encode(crc32c(data).to_bytes(4, "big")).decode()


class Parts:
    """A body in pieces of `PART_BYTES`, the last one shorter; an empty body is one empty piece.

    A stream is read into buffers that are used again once they are given back, by later bodies too (`free`): fresh
    memory costs more than the copy, and holds Python's lock while it is cleared.
    """

    def __init__(self, body: bytes | memoryview | BinaryIO, free: list[bytearray]) -> None:
        self._free = free
        self._pieces: Iterator[Part]
        if isinstance(body, bytes | bytearray | memoryview):
            self._pieces = self._views(memoryview(body))
        else:
            self._pieces = self._read(body)

    def __iter__(self) -> Iterator[Part]:
        return self._pieces

    def give_back(self, part: Part) -> None:
        """`part` has been sent."""
        if isinstance(part, bytearray) and len(part) == PART_BYTES and len(self._free) <= PARTS_IN_FLIGHT:
            self._free.append(part)

    def _views(self, view: memoryview) -> Iterator[bytes]:
        for start in range(0, max(len(view), 1), PART_BYTES):
            yield bytes(view[start : start + PART_BYTES])

    def _read(self, body: BinaryIO) -> Iterator[Part]:
        for number in itertools.count():
            try:
                buffer = self._free.pop()
            except IndexError:
                buffer = bytearray(PART_BYTES)
            size = fill(memoryview(buffer), body)
            if size < PART_BYTES:
                last = bytes(memoryview(buffer)[:size])
                self.give_back(buffer)
                if size or not number:
                    yield last
                return
            yield buffer


class MultipartUpload:
    """Uploads `name`; holds at most `PARTS_IN_FLIGHT` + 1 parts of `PART_BYTES` in memory."""

    def __init__(self, client: S3Client, bucket: str, name: str, options: dict[str, Any]) -> None:
        self._client, self._options = client, options
        self._target: dict[str, Any] = {"Bucket": bucket, "Key": name}

    def run(self, parts: Iterator[Part], give_back: Callable[[Part], None], condition: dict[str, Any]) -> int:
        """Send all parts and complete; returns the size in bytes. boto3's errors pass, after the abort.

        `give_back` is called with each part that was sent.
        """
        answer = self._client.create_multipart_upload(**self._target, ChecksumAlgorithm="CRC32C", **self._options)
        self._target["UploadId"] = answer["UploadId"]
        try:
            done, size = self._send(parts, give_back)
            self._client.complete_multipart_upload(**self._target, MultipartUpload={"Parts": done}, **condition)
        except BaseException:
            with contextlib.suppress(BotoCoreError, ClientError):  # the first error is the one to tell
                self._client.abort_multipart_upload(**self._target)
            raise
        return size

    def _send(self, parts: Iterator[Part], give_back: Callable[[Part], None]) -> tuple[list[Any], int]:
        size, done, running = 0, [], set[Future[dict[str, Any]]]()

        def send(number: int, part: Part) -> dict[str, Any]:
            sent = self._send_part(number, part)
            give_back(part)
            return sent

        with ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="giblet-upload") as pool:
            for number, part in enumerate(parts, start=1):
                if number > MOST_PARTS:
                    raise StorageDeniedError(
                        f"{self._target['Key']} is larger than the {MOST_PARTS * PART_BYTES / 1e9:.0f} GB that one "
                        "object may have here",
                        remedy="shard over more ranks",
                    )
                size += len(part)
                running.add(pool.submit(send, number, part))
                if len(running) >= PARTS_IN_FLIGHT:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    done += [future.result() for future in finished]
            done += [future.result() for future in running]
        return sorted(done, key=lambda part: int(part["PartNumber"])), size

    def _send_part(self, number: int, part: Part) -> dict[str, Any]:
        crc = checksum(part)
        answer = self._client.upload_part(**self._target, PartNumber=number, Body=part, ChecksumCRC32C=crc)  # type: ignore[arg-type]
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32C": crc}
