"""A machine whose clock is wrong: S3 refuses what is signed more than a quarter of an hour off its own time.

boto3 does not mend that. Here the first refusal tells by how much (every answer carries the server's time), and from
then on requests of this process are signed by the server's clock. Nothing else uses it.
"""

from __future__ import annotations

import datetime
import email.utils
import logging
from typing import TYPE_CHECKING, Any

from botocore import auth

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TOLERATED_SECONDS = 300.0
"""A refusal with the server's time no further off than this has another reason. S3 itself tolerates 900 s."""
_TIMESTAMP = "%Y%m%dT%H%M%SZ"
log = logging.getLogger(__name__)


class _Clock:
    """How far the server's clock is ahead of ours, as last found out."""

    ahead = datetime.timedelta()


class _CorrectedAuth(auth.S3SigV4Auth):
    """botocore's own, with the corrected time."""

    def _modify_request_before_signing(self, request: Any) -> None:
        if _Clock.ahead:
            signed = datetime.datetime.strptime(request.context["timestamp"], _TIMESTAMP)
            request.context["timestamp"] = (signed + _Clock.ahead).strftime(_TIMESTAMP)
        super()._modify_request_before_signing(request)  # type: ignore[misc]


auth.AUTH_TYPE_MAPS["s3v4"] = _CorrectedAuth  # of all clients: without a correction it is botocore's own


def correct_clock(client: S3Client) -> None:
    """Have requests signed by the server's clock, once a refusal of this client has shown that ours is wrong."""
    client.meta.events.register_first("needs-retry.s3", _look)  # type: ignore[arg-type]


def _look(response: Any = None, **_: Any) -> float | None:
    """After each try: 0 (seconds until the next one) if it was refused for its time and that is mended now."""
    if response is None:
        return None
    metadata = response[1].get("ResponseMetadata", {})
    if metadata.get("HTTPStatusCode") != 403 or "date" not in metadata.get("HTTPHeaders", {}):
        return None
    try:
        theirs = email.utils.parsedate_to_datetime(metadata["HTTPHeaders"]["date"])
    except ValueError:
        return None
    ahead = theirs - datetime.datetime.now(tz=datetime.UTC)
    if abs((ahead - _Clock.ahead).total_seconds()) <= TOLERATED_SECONDS:
        return None
    log.warning(
        "the clock of this machine is %+.0f s off storage's: requests are signed by storage's from now on",
        -ahead.total_seconds(),
    )
    _Clock.ahead = ahead
    return 0.0
