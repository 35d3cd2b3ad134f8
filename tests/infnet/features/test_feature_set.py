import numpy as np
import pyarrow as pa
import pytest

from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from rayrun.config import ConfigError
from rayrun.data.columns import Columns, TimeColumn

CLICK = {"click": {"type": "binary", "label": "click"}}
ITEM = {"type": "categorical", "column": "item"}
TIME = TimeColumn(column="at")


def made(parse, log, features, tasks=CLICK, roles=None) -> FeatureSet:
    written = parse(features, tasks)
    roles = roles or Columns(user="user", time=TIME, weight="weight")
    return FeatureSet(written.features, written.tasks, roles, log.schema)


def test_only_the_columns_needed_are_named(parse, log):
    features = {
        "item": ITEM,
        "liked": {
            "type": "sequence",
            "fields": ["item"],
            "behaviour": {"column": "shown", "value": 1},
        },
        "rate": {"type": "statistic", "key": ["tag"], "value": "spend"},
    }
    set_ = made(parse, log, features)
    assert set(set_.columns(labels=False)) == {"user", "at", "item", "tag"}
    assert set(set_.columns(labels=True)) == {
        *("user", "at", "item", "tag"),
        *("weight", "click", "shown", "spend"),
    }


def test_roles_add_time_and_labels_and_doing_it_twice_changes_nothing(feature_set, log):
    once = feature_set.with_roles(log)
    assert once["__time"].to_pylist() == log["at"].to_pylist()
    assert once["__label.click"].to_pylist() == log["click"].to_pylist()
    assert once["__label.spend"].to_pylist() == [s / 2 for s in log["spend"].to_pylist()]
    assert feature_set.with_roles(once).equals(once)


def test_bad_rows_are_named_with_their_first_reason(parse, log):
    rows = pa.table(
        {
            "user": [1, None, 1, 1, 1, None],
            "at": [1, 1, None, 1, 1, None],
            "weight": [1.0, 1.0, 1.0, -1.0, 1.0, None],
            "click": [1, 1, 1, 1, 7, 7],
            "item": [1] * 6,
        }
    )
    found = made(parse, rows, {"item": ITEM}).check(rows).to_pylist()
    assert found == [
        None,
        "the user (user) is missing",
        "the time (at) is missing or cannot be read",
        "the weight (weight) is missing, negative or not finite",
        "the label click of the task click is outside 0 to 1",
        "the label click of the task click is outside 0 to 1",
    ]


def test_the_reason_that_a_reader_gave_stands(feature_set, log):
    rows = log.slice(0, 2).append_column("__bad", pa.array(["unreadable line", None]))
    assert feature_set.check(rows).to_pylist() == ["unreadable line", None]


def test_prediction_looks_at_no_label_and_no_weight(feature_set, log):
    bare = log.drop_columns(["click", "spend", "weight"])
    assert feature_set.check(bare, labels=False).null_count == log.num_rows


def test_good_rows_have_no_reason(feature_set, log):
    assert feature_set.check(log).null_count == log.num_rows


@pytest.mark.parametrize("parts", [1, 3, 17])
def test_fitting_does_not_depend_on_how_the_rows_are_grouped(feature_set, encoder, log, parts):
    rows = feature_set.with_roles(log.slice(0, int(0.7 * log.num_rows)))
    order = np.random.default_rng(parts).permutation(rows.num_rows)
    pieces = [rows.take(o) for o in np.array_split(order, parts)]
    summary = feature_set.merge([feature_set.summarise(p) for p in pieces])
    counts = feature_set.merge_counts([feature_set.count(p) for p in pieces])
    again = Encoder.fit(feature_set, summary, counts)
    assert dict(again.states) == dict(encoder.states)
    for name, vocabulary in again.vocabularies.items():
        assert vocabulary.values.equals(encoder.vocabularies[name].values)


STATISTIC = {"type": "statistic", "key": ["item"], "value": "task:click"}
SEQUENCE = {"type": "sequence", "fields": ["item"]}


@pytest.mark.parametrize(
    ("features", "roles", "message"),
    [
        (
            {"x": {"type": "numeric", "column": "numbr"}},
            None,
            r"no column 'numbr', which features\.x needs; the nearest is 'number'",
        ),
        (
            {"s": {**SEQUENCE, "fields": ["itm"]}, "item": ITEM},
            None,
            r"features\.s\.fields: 'itm' is not a feature; name some of item",
        ),
        (
            {"s": {**SEQUENCE, "fields": ["n"]}, "n": {"type": "numeric", "column": "number"}},
            None,
            r"features\.s\.fields: 'n' gives numbers, not ids; name some of \(none\)",
        ),
        (
            {"s": {**STATISTIC, "value": "task:like"}},
            None,
            r"features\.s\.value: there is no task 'like'; the tasks are click",
        ),
        (
            {"c": {"type": "categorical", "column": "click"}},
            None,
            r"features\.c reads click, which is the label of tasks\.click: the model would see",
        ),
        (
            {"a": {**ITEM, "table": "t"}, "b": {**ITEM, "table": "t", "dim": 32}},
            None,
            r"features\.b\.dim must equal features\.a\.dim: they share the table 't'; found 32 and 16",
        ),
        (
            {"a": {**ITEM, "table": "n"}, "n": {"type": "numeric", "column": "number"}},
            None,
            r"features\.a\.table: 'n' is the name of a feature that is not categorical",
        ),
        (
            {"s": STATISTIC},
            Columns(user="user"),
            r"features\.s looks at earlier rows, so the source must name its time",
        ),
        (
            {"s": SEQUENCE, "item": ITEM},
            Columns(time=TIME),
            r"features\.s collects the history of a user, so the source must name it",
        ),
        ({"a.b": ITEM}, None, r"the name 'a\.b' of a feature or task must be letters"),
        (
            {"l": {**ITEM, "column": "steps"}},
            None,
            r"features\.l\.column: the column 'steps' must hold one value per row",
        ),
        (
            {"s": {**STATISTIC, "key": ["past"]}},
            None,
            r"features\.s\.key: the column 'past' must hold one value per row",
        ),
        (
            {"s": {**STATISTIC, "value": "past"}},
            None,
            r"features\.s\.value: the column 'past' must hold numbers, found the type list",
        ),
        (
            {"item": ITEM, "s": {**SEQUENCE, "column": "number"}},
            None,
            r"features\.s\.column: number must hold lists of ids, found the type double",
        ),
        (
            {"item": ITEM, "s": {**SEQUENCE, "behaviour": {"column": "past", "value": 1}}},
            None,
            r"features\.s\.behaviour: the column 'past' must hold numbers",
        ),
        (
            {"x": {"type": "ratio", "numerator": "past", "denominator": "number"}},
            None,
            r"features\.x: the column 'past' must hold numbers",
        ),
    ],
)
def test_features_that_do_not_fit_the_log_are_refused(parse, log, features, roles, message):
    with pytest.raises(ConfigError, match=message):
        made(parse, log, features, roles=roles)


def test_labels_and_weights_must_be_numbers(parse, log):
    with pytest.raises(
        ConfigError, match=r"tasks\.click\.label: the column 'past' must hold numbers"
    ):
        made(parse, log, {"item": ITEM}, {"click": {"type": "binary", "label": "past"}})
    with pytest.raises(ConfigError, match=r"columns\.weight: the column 'past' must hold numbers"):
        made(parse, log, {"item": ITEM}, roles=Columns(weight="past"))


def test_leave_one_out_needs_no_time(parse, log):
    statistic = {**STATISTIC, "fold": "leave_one_out"}
    assert made(parse, log, {"s": statistic}, roles=Columns(user="user")).demands().statistics


def test_a_missing_label_column_names_the_task(parse, log):
    with pytest.raises(ConfigError, match=r"no column 'like', which tasks\.click needs"):
        made(parse, log, {"item": ITEM}, {"click": {"type": "binary", "label": "like"}})
