import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from infnet.features import StatisticFeature
from infnet.features.base import Fitted
from infnet.features.statistic import observed_value
from rayrun.config import ConfigError


def encoded(feature: StatisticFeature, count: list, total: list, state: dict) -> dict[str, list]:
    rows = pa.table({"__statistic.s.count": count, "__statistic.s.sum": total})
    columns = feature.encode("s", rows, Fitted(state))
    return {name: values.to_pylist() for name, values in columns.items()}


def test_rates_equal_the_formula_in_pandas():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"item": random.integers(0, 20, 500), "y": random.integers(0, 2, 500)})
    prior = frame.y.mean()
    by_item = frame.groupby("item").y.agg(["count", "sum"])
    smoothed = (by_item["sum"] + 5 * prior) / (by_item["count"] + 5)
    feature = StatisticFeature(
        key=("item",), value="task:click", outputs=("count", "mean", "logit")
    )
    rows = pa.table({"__label.click": pa.array(frame.y.astype(float))})
    state = feature.fit("s", feature.merge([feature.summarise("s", rows)]))
    columns = encoded(
        feature,
        by_item["count"].astype(float).tolist(),
        by_item["sum"].astype(float).tolist(),
        state,
    )
    np.testing.assert_allclose(columns["d.s.mean"], smoothed, rtol=1e-6)
    np.testing.assert_allclose(columns["d.s.logit"], np.log(smoothed / (1 - smoothed)), atol=1e-6)
    np.testing.assert_allclose(columns["d.s.count"], np.log1p(by_item["count"]), rtol=1e-6)


def test_a_new_key_has_the_prior():
    feature = StatisticFeature(key=("k",), value="task:click", outputs=("mean", "logit"))
    found = encoded(feature, [0.0], [0.0], {"prior": 0.2, "deviation": 0.4})
    assert found["d.s.mean"] == [pytest.approx(0.2)]
    assert found["d.s.logit"] == [pytest.approx(np.log(0.25))]


@pytest.mark.parametrize(("prior", "sign"), [(0.0, -1), (1.0, 1)])
def test_a_rate_that_is_always_0_or_1_has_a_finite_logit(prior, sign):
    feature = StatisticFeature(key=("k",), value="task:click", outputs=("logit",))
    found = encoded(feature, [3.0], [3 * prior], {"prior": prior, "deviation": 0.0})
    assert found["d.s.logit"] == [pytest.approx(sign * np.log(1e6 - 1), rel=1e-5)]


def test_amounts_may_be_normalised():
    feature = StatisticFeature(key=("k",), value="v", outputs=("mean",), normalise=True)
    found = encoded(feature, [5.0], [100.0], {"prior": 10.0, "deviation": 2.5})
    assert found["d.s.mean"] == [pytest.approx((15 - 10) / 2.5)]
    constant = encoded(feature, [5.0], [50.0], {"prior": 10.0, "deviation": 0.0})
    assert constant["d.s.mean"] == [0.0]


def test_the_slots_of_a_rate_carry_their_task():
    outputs = ("count", "mean", "logit")
    rate = StatisticFeature(key=("k",), value="task:click", outputs=outputs)
    slots = rate.slots("s", Fitted({})).dense
    assert [(s.name, s.task) for s in slots] == [
        ("s.count", ""),
        ("s.mean", "click"),
        ("s.logit", "click"),
    ]
    amount = StatisticFeature(key=("k",), value="spend", outputs=("mean",))
    assert amount.slots("s", Fitted({})).dense[0].task == ""


def test_unobserved_labels_are_no_rows_of_the_prior():
    feature = StatisticFeature(key=("k",), value="task:click")
    rows = pa.table({"__label.click": [1.0, None, 0.0, None]})
    state = feature.fit("s", feature.merge([feature.summarise("s", rows)]))
    assert state == {"prior": 0.5, "deviation": 0.5}
    assert np.isnan(observed_value(rows, "task:click")).tolist() == [False, True, False, True]


def test_a_logit_of_amounts_is_refused():
    feature = StatisticFeature(key=("k",), value="v", outputs=("logit",))
    summary = feature.summarise("s", pa.table({"v": [0.5, 3.0]}))
    message = (
        r"features\.s\.outputs: logit needs values between 0 and 1, v has values from 0.5 to 3"
    )
    with pytest.raises(ConfigError, match=message):
        feature.fit("s", summary)


def test_values_that_are_no_numbers_are_bad_rows():
    feature = StatisticFeature(key=("k",), value="v")
    (problem,) = feature.problems("s", pa.table({"v": ["1", "x", None]}))
    assert problem.rows.tolist() == [False, True, False]
    assert problem.reason == "v is not a finite number"
    assert feature.problems("s", pa.table({"k": [1]})) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": []}, "key and outputs must each name at least one"),
        ({"key": ["k"], "value": "v", "smoothing": 0.0}, "smoothing must be above 0"),
        ({"key": ["k"]}, "outputs .* need a value: a column, or task:<name>"),
        ({"key": ["k"], "value": "v", "outputs": ["median"]}, "'count', 'mean' or 'logit'"),
        ({"key": ["k"], "value": "v", "fold": "all"}, "'earlier' or 'leave_one_out'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(parse, settings, message):
    with pytest.raises(ConfigError, match=message):
        parse({"s": {"type": "statistic", **settings}})
