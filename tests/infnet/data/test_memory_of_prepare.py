import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))


@pytest.mark.slow
@pytest.mark.ray
def test_no_worker_grows_with_the_rows_nor_when_half_of_them_have_one_user():
    import prepare_memory
    import ray

    assert not ray.is_initialized(), "this test measures the processes of a Ray of its own"
    small, _ = prepare_memory.measure(20_000, 0.0)
    large, _ = prepare_memory.measure(320_000, 0.5)
    # 300,000 rows more are 150 MB encoded, of which one user has half
    assert large < small + 100 * 2**20
