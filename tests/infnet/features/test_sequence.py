import numpy as np
import pyarrow as pa
import pytest

from infnet.features.base import Where
from infnet.features.columns import as_lists, lists, ranges
from rayrun.config import ConfigError

EVENT = pa.struct([("item", pa.int64()), ("number", pa.float64()), ("__time", pa.int64())])
DAY_MS = 86_400_000


def with_history(encoder, events: list[list[dict]], at: list[int], name: str = "clicks") -> dict:
    """The encoded columns of one sequence for rows with these histories."""
    rows = pa.table({"__time": at, f"__history.{name}": pa.array(events, pa.list_(EVENT))})
    feature = encoder.features.features[name]
    columns = feature.encode(name, rows, encoder.fitted[name])
    return {column: values.to_pylist() for column, values in columns.items()}


def event(item: int, time: int, number: float | None = 1.0) -> dict:
    return {"item": item, "number": number, "__time": time}


def test_events_have_the_ids_of_their_fields_and_an_age_in_days(encoder):
    found = with_history(encoder, [[event(3, 0), event(5, DAY_MS)], []], [3 * DAY_MS, 0])
    items = encoder.vocabularies["item"].ids(pa.array([3, 5])).tolist()
    assert found["s.clicks.ids.item"] == [items, []]
    assert found["s.clicks.ages"] == [[3.0, 2.0], []]
    level = encoder.features.features["level"]
    ids = level.ids("level", pa.array([1.0, 1.0]), encoder.fitted["level"]).tolist()
    assert found["s.clicks.ids.level"] == [ids, []]


def test_the_most_recent_events_are_kept(encoder):
    many = [event(item, item) for item in range(10)]
    found = with_history(encoder, [many, many[:2]], [DAY_MS, DAY_MS])
    expected = encoder.vocabularies["item"].ids(pa.array([6, 7, 8, 9])).tolist()
    assert found["s.clicks.ids.item"][0] == expected
    assert len(found["s.clicks.ages"][1]) == 2


def test_the_cap_of_512_keeps_the_most_recent(parse):
    long = list(range(1000))
    elements, lengths = lists(pa.array([long, long[:3]]), 512)
    assert lengths.tolist() == [512, 3]
    assert elements.to_pylist() == long[-512:] + long[:3]
    with pytest.raises(ConfigError, match="max_length must be 1 to 512, found 513"):
        parse({"s": {"type": "sequence", "fields": ["a"], "max_length": 513}})


def test_a_list_column_is_a_history_without_ages(encoder, later):
    table = encoder.encode(later)
    vocabulary = encoder.vocabularies["item"]
    for past, ids, ages in zip(
        later["past"].to_pylist(),
        table["s.past.ids.item"].to_pylist(),
        table["s.past.ages"].to_pylist(),
        strict=True,
    ):
        assert ids == vocabulary.ids(pa.array(past[-3:], pa.int64())).tolist()
        assert ages == [0.0] * len(ids)


def test_behaviours_have_tables_of_their_own_unless_they_share(encoder):
    schema = encoder.schema()
    shared, own = ({s.name: s for s in schema.sequences}[n] for n in ("clicks", "seen"))
    assert shared.tables == ("item", "level")
    assert own.tables == ("seen.item", "seen.tag")
    assert schema.tables["seen.item"] == schema.tables["item"]
    assert (shared.decay, shared.max_length, shared.fields) == (0.5, 4, ("item", "level"))


ROWS = pa.table(
    {"x": [0.0, 1.0, 2.0, None], "t": ["a", "b", None, "b"], "f": [True, False, True, None]}
)


@pytest.mark.parametrize(
    ("column", "op", "value", "holds"),
    [
        ("x", "==", 1.0, [0, 1, 0, 0]),
        ("x", "!=", 1.0, [1, 0, 1, 0]),
        ("x", ">", 0.0, [0, 1, 1, 0]),
        ("x", ">=", 1.0, [0, 1, 1, 0]),
        ("x", "<", 1.0, [1, 0, 0, 0]),
        ("x", "<=", 1.0, [1, 1, 0, 0]),
        ("t", "==", "b", [0, 1, 0, 1]),
        ("t", "!=", "b", [1, 0, 0, 0]),
        ("f", "==", True, [1, 0, 1, 0]),
    ],
)
def test_a_condition_holds_where_it_says_and_never_where_a_value_is_missing(
    column, op, value, holds
):
    assert Where(column=column, op=op, value=value).holds(ROWS).tolist() == [bool(h) for h in holds]


def test_text_has_no_order(parse):
    behaviour = {"column": "t", "op": ">", "value": "a"}
    with pytest.raises(ConfigError, match=r"op '>' needs a number as value, found 'a'"):
        parse({"s": {"type": "sequence", "fields": ["a"], "behaviour": behaviour}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fields": []}, "fields must name at least one feature, each once"),
        ({"fields": ["a", "a"]}, "fields must name at least one feature, each once"),
        ({"fields": ["a"], "decay": -0.1}, "decay must be at least 0"),
        ({"fields": ["a", "b"], "column": "l"}, "exactly one of fields is needed"),
        ({"fields": ["a"], "column": "l", "decay": 1.0}, "neither behaviour nor decay"),
    ],
)
def test_settings_that_mean_nothing_are_refused(parse, settings, message):
    with pytest.raises(ConfigError, match=message):
        parse({"s": {"type": "sequence", **settings}})


def test_lists_are_taken_apart_and_put_together():
    values = pa.array([[1, 2], None, [], [3]])
    elements, lengths = lists(values, 10)
    assert elements.to_pylist() == [1, 2, 3]
    assert as_lists(elements, lengths).to_pylist() == [[1, 2], [], [], [3]]
    assert lists(values.slice(1, 3), 10)[0].to_pylist() == [3]
    assert ranges(np.array([5, 0, 2]), np.array([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]


def test_a_column_that_holds_no_lists_is_refused():
    with pytest.raises(ConfigError, match="a column of lists is required, found the type int64"):
        lists(pa.array([1]), 3)
