import numpy as np
import pyarrow as pa
import pytest

from infnet.features import WindowFeature
from infnet.features.base import Fitted
from rayrun.config import ConfigError


def rows_of(values: list) -> pa.Table:
    return pa.table({"w": pa.array(values, pa.list_(pa.float64()))})


def encoded(feature: WindowFeature, rows: pa.Table) -> list:
    state = feature.fit("w", feature.merge([feature.summarise("w", rows)]))
    return feature.encode("w", rows, Fitted(state))["d.w"].to_pylist()


PLAIN = {"column": "w", "length": 3, "normalise": "none"}


def test_steps_stand_side_by_side_with_an_indicator():
    rows = rows_of([[1, 2, 3], None, [4, None, 6]])
    assert encoded(WindowFeature(**PLAIN), rows) == [[1, 2, 3, 0], [0, 0, 0, 1], [4, 0, 6, 0]]


def test_all_steps_share_one_normalisation():
    rows = rows_of([[0, 2, 4], [6, 8, 10]])
    found = np.array(encoded(WindowFeature(column="w", length=3), rows))[:, :3]
    np.testing.assert_allclose(found.reshape(-1), (np.arange(0, 12, 2) - 5) / np.sqrt(35 / 3))


def test_a_missing_step_is_the_mean():
    found = encoded(WindowFeature(column="w", length=3), rows_of([[1, None, 3]]))
    np.testing.assert_allclose(found, [[-1, 0, 1, 0]])


def test_a_short_window_may_lack_its_oldest_steps():
    feature = WindowFeature(short="pad", **PLAIN)
    rows = rows_of([[2, 3], [1, 2, 3], []])
    assert encoded(feature, rows) == [[0, 2, 3, 0], [1, 2, 3, 0], [0, 0, 0, 1]]
    assert not any(problem.rows.any() for problem in feature.problems("w", rows))


@pytest.mark.parametrize(("short", "bad"), [("refuse", [0, 1, 1, 0]), ("pad", [0, 0, 1, 0])])
def test_a_window_of_another_length_is_a_bad_row(short, bad):
    rows = rows_of([[1, 2, 3], [1, 2], [1, 2, 3, 4], None])
    length, steps = WindowFeature(short=short, **PLAIN).problems("w", rows)
    assert length.rows.tolist() == [bool(b) for b in bad]
    assert length.reason == "the window w has another number of steps than 3"
    assert not steps.rows.any()


def test_a_bad_window_is_encoded_as_missing():
    assert encoded(WindowFeature(**PLAIN), rows_of([[1, 2], [1, 2, 3, 4]])) == [[0, 0, 0, 1]] * 2


def test_steps_that_are_no_finite_numbers_are_bad_rows():
    _, steps = WindowFeature(**PLAIN).problems(
        "w", rows_of([[1, 2, float("inf")], [1, 2, 3], None])
    )
    assert steps.rows.tolist() == [True, False, False]
    assert steps.reason == "the window w has a step that is no finite number"
    _, steps = WindowFeature(transform="log1p", **PLAIN).problems("w", rows_of([[1, 2, -1]]))
    assert steps.rows.tolist() == [True]
    assert steps.reason.endswith("above -1 (under log1p)")


def test_fixed_size_lists_are_windows_too():
    rows = rows_of([[1, 2, 3], None])
    fixed = pa.table({"w": rows["w"].cast(pa.list_(pa.float64(), 3))})
    feature = WindowFeature(**PLAIN)
    assert encoded(feature, fixed) == encoded(feature, rows)
    feature.check_columns("w", fixed.schema)
    with pytest.raises(ConfigError, match=r"features\.w\.length is 4, but w holds lists of 3"):
        WindowFeature(column="w", length=4).check_columns("w", fixed.schema)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.float64(), "w must hold lists of 3 numbers, found the type double"),
        (pa.list_(pa.date32()), r"\(its steps\): the column 'w' must hold numbers"),
    ],
)
def test_columns_of_other_types_are_refused(kind, message):
    with pytest.raises(ConfigError, match=message):
        WindowFeature(**PLAIN).check_columns("w", pa.schema([("w", kind)]))


@pytest.mark.parametrize("length", [0, 513])
def test_impossible_lengths_are_refused(parse, length):
    with pytest.raises(ConfigError, match=f"length must be 1 to 512, found {length}"):
        parse({"w": {"type": "window", "column": "w", "length": length}})
