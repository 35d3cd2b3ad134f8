import os

import pytest
import torch

from tests.infnet.train import written_dataset as written


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return written.dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def ray_session():
    """One Ray for the tests of this room."""
    from rayrun.ray.compute import LocalCompute
    from rayrun.ray.session import session

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with session(LocalCompute(workers=1, num_cpus=2, object_store_bytes=200_000_000)):
        yield
