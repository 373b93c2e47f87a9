"""What requests and bytes cost at Amazon S3's public list prices.

US East (N. Virginia), S3 Standard, as published in 2025 and taken from memory, not looked up: check them at
https://aws.amazon.com/s3/pricing/ before you plan with them. Transfer within the region, DELETE and aborted uploads are
free; storage is the first 50 TB's price.
"""

from __future__ import annotations

from collections.abc import Mapping

LIST = "Amazon S3 Standard, us-east-1, public list prices of 2025 (to be checked)"
WRITE_PER_THOUSAND, READ_PER_THOUSAND, GIGABYTE_MONTH = 0.005, 0.0004, 0.023
_WRITES = {
    "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "ListObjectsV2",
    "ListMultipartUploads",
}  # fmt: skip
_READS = {"GetObject", "HeadObject"}
_FREE = {"DeleteObject", "AbortMultipartUpload"}


def requests_dollars(requests: Mapping[str, int]) -> float:
    """The price of requests, counted by operation. Raises `KeyError` for one without a price."""
    if unknown := requests.keys() - _WRITES - _READS - _FREE:
        raise KeyError(f"no price for {', '.join(sorted(unknown))}")
    writes = sum(count for name, count in requests.items() if name in _WRITES)
    reads = sum(count for name, count in requests.items() if name in _READS)
    return writes / 1000 * WRITE_PER_THOUSAND + reads / 1000 * READ_PER_THOUSAND


def storage_dollars(size_bytes: int) -> float:
    """The price of keeping so many bytes for a month."""
    return size_bytes / 1e9 * GIGABYTE_MONTH
