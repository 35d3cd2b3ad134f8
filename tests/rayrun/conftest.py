"""An empty place on each kind of store."""

from pathlib import Path

import pytest


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place on each kind of store."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
