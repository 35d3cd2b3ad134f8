import numpy as np
import pyarrow as pa

from infnet.features.labels import label, label_columns, label_problems
from infnet.tasks import BinaryTask, Label, RegressionTask

ROWS = pa.table(
    {
        "click": [1, 0, None, 2],
        "rating": [5.0, 3.0, None, 4.0],
        "shown": [1, 0, 1, None],
        "spend": ["1.5", "", "x", "-1"],
    }
)


def found(task) -> list:
    return [None if np.isnan(v) else v for v in label(ROWS, task)]


def test_a_missing_label_is_not_observed():
    assert found(BinaryTask(label="click")) == [1, 0, None, 2]


def test_a_label_may_be_a_comparison():
    assert found(BinaryTask(label=Label(column="rating", above=3))) == [1, 0, None, 1]


def test_a_label_may_be_observed_only_where_another_column_says_so():
    task = BinaryTask(label=Label(column="click", observed_when="shown"))
    assert found(task) == [1, None, None, None]
    assert label_columns(task) == ("click", "shown")


def test_amounts_are_scaled():
    assert found(RegressionTask(label=Label(column="rating", scale=0.1))) == [
        0.5,
        0.3 + 5e-17,
        None,
        0.4,
    ]


def test_labels_outside_their_range_or_unreadable_are_bad_rows():
    tasks = {"click": BinaryTask(label="click")}
    reasons = {p.reason: p.rows.tolist() for p in label_problems(ROWS, tasks)}
    assert reasons == {
        "click is not a finite number": [False] * 4,
        "the label click of the task click is outside 0 to 1": [False, False, False, True],
    }
    large = pa.table({"spend": [1e39, 1.0]})
    reasons = {
        p.reason: p.rows.tolist()
        for p in label_problems(large, {"s": RegressionTask(label="spend")})
    }
    assert [True, False] in reasons.values()  # no float32 holds it
    unreadable = label_problems(ROWS, {"spend": RegressionTask(label="spend")})[0]
    assert unreadable.reason == "spend is not a finite number"
    assert unreadable.rows.tolist() == [False, False, True, False]
