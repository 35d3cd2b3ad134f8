import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, StandardScaler

from infnet.features import DeltaFeature, NumericFeature, RatioFeature
from infnet.features.base import Fitted
from infnet.features.columns import numbers
from infnet.features.scaled import ScaledNumber
from rayrun.config import ConfigError


def rows_of(values: list | np.ndarray, **others) -> pa.Table:
    table = {"x": pa.array(values), **{n: pa.array(v) for n, v in others.items()}}
    return pa.table({**table, "__row_id": pa.array(np.arange(len(values)))})


def fitted(feature: ScaledNumber, rows: pa.Table) -> Fitted:
    return Fitted(feature.fit("x", feature.merge([feature.summarise("x", rows)])))


def encoded(feature: ScaledNumber, train: pa.Table, rows: pa.Table | None = None) -> np.ndarray:
    columns = feature.encode("x", train if rows is None else rows, fitted(feature, train))
    (column,) = columns.values()
    return np.array(column.to_pylist())


@pytest.mark.parametrize(
    ("normalise", "scaler"), [("standard", StandardScaler()), ("minmax", MinMaxScaler())]
)
def test_normalising_equals_scikit_learn(normalise, scaler):
    random = np.random.default_rng(0)
    train, test = random.normal(5, 3, 500), random.normal(5, 9, 100)
    ours = encoded(NumericFeature(column="x", normalise=normalise), rows_of(train), rows_of(test))
    theirs = scaler.fit(train[:, None]).transform(test[:, None])[:, 0]
    np.testing.assert_allclose(ours[:, 0], theirs, rtol=1e-6)


@pytest.mark.parametrize("buckets", [2, 5, 32])
def test_buckets_equal_those_of_scikit_learn(buckets):
    random = np.random.default_rng(1)
    train, test = random.exponential(2, 3000), random.exponential(3, 500)
    ours = encoded(NumericFeature(column="x", buckets=buckets), rows_of(train), rows_of(test))
    peer = KBinsDiscretizer(
        buckets, encode="ordinal", strategy="quantile", quantile_method="linear", subsample=None
    )
    theirs = peer.fit(train[:, None]).transform(test[:, None])[:, 0]
    assert (ours - 3 == theirs).all()  # 0 padding, 1 unknown, 2 missing


def test_quantiles_from_the_sample_are_close_to_those_of_all_rows():
    values = np.random.default_rng(2).exponential(1, 100_000)
    feature = NumericFeature(column="x", buckets=10)
    edges = fitted(feature, rows_of(values)).state["edges"]
    ranks = (values[:, None] <= np.array(edges)).mean(axis=0)
    # each rank is off by √(q(1−q)/8192) ≤ 0.0055: 4 σ
    np.testing.assert_allclose(ranks, np.arange(1, 10) / 10, atol=4 * 0.0055)


def test_coinciding_quantiles_make_fewer_buckets():
    train = [0.0] * 90 + [1.0] * 10
    feature = NumericFeature(column="x", buckets=10)
    state = fitted(feature, rows_of(train))
    assert state.state["edges"] == [1.0] or len(state.state["edges"]) == 1
    assert feature.id_table("x", state).rows == 5
    assert encoded(feature, rows_of(train), rows_of([-1.0, 0.0, 0.5, 1.0, 2.0])).tolist()[:2] == [
        3,
        3,
    ]


def test_a_constant_has_one_bucket_and_normalises_to_0():
    train = rows_of([4.0] * 20)
    assert set(encoded(NumericFeature(column="x", buckets=4), train)) == {3}
    assert set(encoded(NumericFeature(column="x"), train)[:, 0]) == {0.0}
    assert set(encoded(NumericFeature(column="x", normalise="minmax"), train)[:, 0]) == {0.0}


def test_missing_is_0_with_an_indicator_or_a_bucket_of_its_own():
    train = rows_of([1.0, None, 3.0, float("nan")])
    assert encoded(NumericFeature(column="x"), train).tolist() == [[-1, 0], [0, 1], [1, 0], [0, 1]]
    assert encoded(NumericFeature(column="x", missing="zero"), train).tolist() == [-1, 0, 1, 0]
    assert encoded(NumericFeature(column="x", buckets=2), train).tolist() == [3, 2, 4, 2]


def test_a_column_that_is_always_missing_can_be_fitted():
    train = rows_of(pa.array([None, None], pa.float64()))
    assert encoded(NumericFeature(column="x"), train).tolist() == [[0, 1], [0, 1]]
    assert encoded(NumericFeature(column="x", buckets=3), train).tolist() == [2, 2]


def test_transforms():
    rows = rows_of([0.0, 3.0, 100.0])
    plain = {"column": "x", "normalise": "none", "missing": "zero"}
    log = encoded(NumericFeature(transform="log1p", **plain), rows)
    np.testing.assert_allclose(log, np.log([1, 4, 101]), rtol=1e-6)
    signed = encoded(NumericFeature(transform="signed_log", **plain), rows_of([-3.0, 0.0, 3.0]))
    np.testing.assert_allclose(signed, [-np.log(4), 0, np.log(4)], rtol=1e-6)


def test_numbers_written_as_text_are_read():
    rows = rows_of([" 1", "-2.5e1", "", None, ".5"])
    feature = NumericFeature(column="x", normalise="none")
    assert encoded(feature, rows).tolist() == [[1, 0], [-25, 0], [0, 1], [0, 1], [0.5, 0]]
    assert not any(problem.rows.any() for problem in feature.problems("x", rows))


@pytest.mark.parametrize("value", ["abc", "1,5", "0x10", "inf", "--1", "1e"])
def test_text_that_is_no_number_is_a_bad_row(value):
    (problem,) = NumericFeature(column="x").problems("x", rows_of(["1", value]))
    assert problem.rows.tolist() == [False, True]
    assert problem.reason == "x is not a finite number"


def test_infinite_numbers_are_bad_rows():
    (problem,) = NumericFeature(column="x").problems("x", rows_of([float("inf"), 1.0, None]))
    assert problem.rows.tolist() == [True, False, False]


def test_numbers_without_a_logarithm_are_bad_rows():
    feature = NumericFeature(column="x", transform="log1p")
    (_, problem) = feature.problems("x", rows_of([-1.0, -0.5, None, -7.0]))
    assert problem.rows.tolist() == [True, False, False, True]
    assert problem.reason == "x is -1 or less, under log1p"


@given(st.lists(st.none() | st.floats(width=64), min_size=1))
def test_whatever_stands_in_the_column_the_numbers_are_finite(values):
    rows = rows_of(pa.array(values, pa.float64()))
    for feature in (NumericFeature(column="x"), NumericFeature(column="x", normalise="minmax")):
        assert np.isfinite(encoded(feature, rows)).all()
    assert (encoded(NumericFeature(column="x", buckets=3), rows) >= 2).all()


@given(st.lists(st.floats(-100, 100), min_size=2), st.integers(1, 5), st.randoms())
def test_the_state_does_not_depend_on_the_grouping(values, parts, random):
    rows = rows_of(values)
    for feature in (NumericFeature(column="x"), NumericFeature(column="x", buckets=4)):
        order = list(range(len(values)))
        random.shuffle(order)
        pieces = [
            feature.summarise("x", rows.take(o)) for o in np.array_split(order, parts) if len(o)
        ]
        assert feature.fit("x", feature.merge(pieces)) == fitted(feature, rows).state


def test_edges_know_the_training_rows_only():
    feature = NumericFeature(column="x", buckets=4)
    train = rows_of(np.arange(100.0))
    before = feature.encode("x", train, fitted(feature, train))
    far = rows_of(np.concatenate([np.arange(100.0), [1e9] * 50]))
    after = feature.encode("x", far, fitted(feature, train))["c.x"].slice(0, 100)
    assert after.equals(before["c.x"])


def test_a_ratio_divides_and_smooths():
    rows = rows_of([1, 0, 3, None, 2], y=[4, 0, 0, 1, None])
    plain = {"numerator": "x", "denominator": "y", "normalise": "none"}
    assert encoded(RatioFeature(**plain), rows).tolist() == [
        [0.25, 0],
        [0, 1],  # 0/0
        [0, 1],  # 3/0
        [0, 1],
        [0, 1],
    ]
    smooth = encoded(RatioFeature(smoothing=1.0, **plain), rows)
    np.testing.assert_allclose(smooth[:3, 0], [0.2, 0, 3])


def test_a_delta_is_absolute_or_relative():
    rows = rows_of([3.0, 1.0, 5.0, None], y=[1.0, -2.0, 0.0, 1.0])
    plain = {"a": "x", "b": "y", "normalise": "none"}
    assert encoded(DeltaFeature(**plain), rows).tolist() == [[2, 0], [3, 0], [5, 0], [0, 1]]
    relative = encoded(DeltaFeature(relative=True, **plain), rows)
    assert relative.tolist() == [[2, 0], [1.5, 0], [0, 1], [0, 1]]


def test_parts_of_a_ratio_and_a_delta_that_are_no_numbers_are_bad_rows():
    rows = rows_of(["1", "a"], y=[float("inf"), 1.0])
    for feature in (RatioFeature(numerator="x", denominator="y"), DeltaFeature(a="x", b="y")):
        found = {problem.reason: problem.rows.tolist() for problem in feature.problems("f", rows)}
        assert found == {
            "x is not a finite number": [False, True],
            "y is not a finite number": [True, False],
        }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buckets": 1}, "buckets must be 2 to 1024, found 1"),
        ({"buckets": 4, "dim": 4}, "dim must be 8 to 128, found 4"),
        ({"dim": 32}, "dim is the width of a bucket's embedding; set buckets"),
        ({"buckets": 4, "transform": "log1p"}, r"transform \(log1p\) does nothing to buckets"),
        ({"transform": "sqrt"}, "transform: Input should be 'none', 'log1p' or 'signed_log'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(parse, settings, message):
    with pytest.raises(ConfigError, match=message):
        parse({"x": {"type": "numeric", "column": "x", **settings}})


def test_a_negative_smoothing_is_refused(parse):
    ratio = {"type": "ratio", "numerator": "a", "denominator": "b", "smoothing": -1.0}
    with pytest.raises(ConfigError, match="smoothing must be at least 0, found -1"):
        parse({"x": ratio})


def test_columns_that_hold_no_numbers_cannot_be_read_as_such():
    with pytest.raises(ConfigError, match=r"a number is required, found a column of type list"):
        numbers(pa.array([[1]]))


def test_dates_are_no_numbers(parse):
    schema = pa.schema([("x", pa.date32())])
    with pytest.raises(ConfigError, match=r"features\.x: the column 'x' must hold numbers.*date32"):
        NumericFeature(column="x").check_columns("x", schema)
