"""Requests of a machine whose clock is wrong, to a server that refuses them as S3 does."""

from __future__ import annotations

import datetime
import email.utils

import pytest

from giblet.config.schema import CheckpointConfig
from giblet.errors import StorageDeniedError
from giblet.storage import s3_clock
from giblet.storage.s3 import S3Storage
from tests.support.cluster import REPOSITORY  # noqa: F401  (puts ci/ on the path)

# isort: split
from drills.proxy import FaultProxy, Response, error

CREDENTIALS = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}


@pytest.fixture
def proxy(monkeypatch):
    monkeypatch.setattr(s3_clock._Clock, "ahead", datetime.timedelta())
    with FaultProxy("http://127.0.0.1:1") as found:
        yield found


def server(ahead_seconds, *, code="RequestTimeTooSkewed", lenient=False):
    """Answers `ok` to what is signed within a quarter of an hour of its time, which is so far ahead."""
    seen = []

    def behave(request, forward):
        now = datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(seconds=ahead_seconds)
        signed = datetime.datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%S%z")
        seen.append(abs((signed - now).total_seconds()))
        date = [("Date", email.utils.format_datetime(now, usegmt=True))]
        if seen[-1] > 900 or lenient:
            refused = error(403, code)
            return Response(403, b"" if request.method == "HEAD" else refused.body, date)
        return Response(200, b"" if request.method == "PUT" else b"ok", date)

    return behave, seen


def storage(proxy):
    config = CheckpointConfig(url="s3://bucket", endpoint_url=proxy.endpoint_url, max_attempts=2)
    return S3Storage.open("s3://bucket", config, credentials=CREDENTIALS)


@pytest.mark.parametrize("ahead_seconds", [3600, -3600])
def test_the_first_refusal_corrects_the_clock_for_all_that_follow(proxy, ahead_seconds):
    proxy.behave, seen = server(ahead_seconds)
    assert storage(proxy).get("k") == b"ok"
    assert storage(proxy).put("k", b"1") == 1
    assert [round(off) > 900 for off in seen] == [True, False, False]


def test_a_refusal_without_a_word_is_understood_by_its_date(proxy):
    proxy.behave, seen = server(3600, code="AccessDenied")
    storage(proxy)._client.head_bucket(Bucket="bucket")
    assert len(seen) == 2


def test_a_refusal_for_another_reason_stays_one(proxy):
    proxy.behave, seen = server(3600, code="AccessDenied", lenient=True)
    with pytest.raises(StorageDeniedError):
        storage(proxy).get("k")
    assert len(seen) == 2, "the clock was corrected once, and it was not that"
