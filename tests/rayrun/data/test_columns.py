import datetime

import pyarrow as pa
import pytest

from rayrun.data.columns import to_milliseconds


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        (pa.array([1, -1, None]), "s", [1000, -1000, None]),
        (pa.array([1.5, float("nan")]), "s", [1500, None]),
        (pa.array([1999, -1]), "us", [1, -1]),
        (pa.array([7]), "ms", [7]),
        (
            pa.array(["1970-01-02", "1970-01-01T08:00+08:00", "x", None]),
            "iso",
            [86_400_000, 0, None, None],
        ),
        (pa.array([datetime.date(1970, 1, 2)]), "ms", [86_400_000]),
        (pa.array([5_000_000_001], pa.timestamp("ns")), "s", [5000]),
        (pa.array([5], pa.timestamp("s")), "iso", [5000]),
        (pa.array([2**60]), "s", [None]),
    ],
)
def test_times_become_milliseconds(values, unit, expected):
    assert to_milliseconds(values, unit).to_pylist() == expected
