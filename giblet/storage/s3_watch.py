"""What comes of each try of each S3 request, for whoever counts them. A try that boto3 repeats is one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from giblet.storage.base import Observer, Outcome

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}


def watch_client(client: S3Client, observe: Observer) -> None:
    """Call `observe(operation, outcome)` after each try, in the thread that made it. The operation is the S3 name."""

    def tried(response: Any = None, operation: Any = None, **_: Any) -> None:
        # Botocore asks here whether to try again; the answer None leaves that to its own rules.
        observe(str(getattr(operation, "name", operation)), _outcome(response))

    client.meta.events.register_first("needs-retry.s3", tried)


def _outcome(response: Any) -> Outcome:
    if response is None:  # an exception in place of an answer
        return "connection"
    parsed = response[1]
    status = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = parsed.get("Error", {}).get("Code", "")
    if status == 429 or code in _THROTTLED:
        return "throttled"
    if status >= 500:
        return "server"
    if status == 404:
        return "missing"
    if status in (409, 412):
        return "exists"
    return "denied" if status >= 400 and status != 416 else "ok"
