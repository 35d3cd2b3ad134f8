"""One Ray and one prepared log for the tests of this room."""

import pytest

from infnet.data.prepare import prepare
from tests.infnet.data import logs


@pytest.fixture(scope="package")
def ray_session():
    from rayrun.ray.compute import LocalCompute
    from rayrun.ray.session import session

    with session(LocalCompute(num_cpus=2, object_store_bytes=200_000_000)):
        yield


@pytest.fixture(scope="package")
def prepared(ray_session, tmp_path_factory):
    """(raw rows, directory) of a log read in one piece, with frozen statistics."""
    root = tmp_path_factory.mktemp("prepared")
    rows = logs.table()
    prepare(logs.config(logs.write(root / "log", rows)), str(root / "out"))
    return rows, root / "out"
