"""What integration tests share: one real S3 server a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from giblet.storage.embedded import EmbeddedServer, embedded_s3
from tests.support.ranks import RankPool


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with embedded_s3(tmp_path_factory.mktemp("s3"), bucket="giblet") as server:
        yield server


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    with RankPool() as pool:
        yield pool
