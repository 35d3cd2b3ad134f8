"""A dashboard without a cluster."""

from collections.abc import Iterator

import pytest
from answering_dashboard import Dashboard
from token_head import head  # noqa: F401 - a fixture


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    server = Dashboard()
    yield server
    server.stop()
