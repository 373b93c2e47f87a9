"""Requests to S3 counted by what came of them, each try by itself."""

from __future__ import annotations

from collections import Counter

import pytest

from giblet.config.schema import CheckpointConfig
from giblet.errors import GibletError
from giblet.storage.base import Outcome, Watchable
from giblet.storage.s3 import S3Storage
from tests.support.s3 import HASTY, dead_endpoint, failing_endpoint

CREDENTIALS = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}


def tried(endpoint: str) -> Counter[tuple[str, Outcome]]:
    config = CheckpointConfig(url="s3://bucket", endpoint_url=endpoint).model_copy(update=HASTY)
    storage = S3Storage.open(config.url, config, credentials=CREDENTIALS)
    assert isinstance(storage, Watchable)
    found: Counter[tuple[str, Outcome]] = Counter()
    storage.watch(lambda operation, outcome: found.update([(operation, outcome)]))
    with pytest.raises(GibletError):
        storage.put("key", b"body")
    return found


@pytest.mark.parametrize(
    ("status", "reason", "outcome", "tries"),
    [
        (500, "InternalError", "server", 2),
        (503, "SlowDown", "throttled", 2),
        (403, "AccessDenied", "denied", 1),
    ],
)
def test_an_answer_that_is_a_fault_is_counted_for_each_try(
    status: int, reason: str, outcome: Outcome, tries: int
) -> None:
    with failing_endpoint(status, reason) as endpoint:
        assert tried(endpoint) == {("PutObject", outcome): tries}


def test_no_answer_is_a_connection_fault() -> None:
    with dead_endpoint() as endpoint:
        assert tried(endpoint) == {("PutObject", "connection"): 2}
