import numpy as np
import pyarrow as pa
import pytest

from infnet.features.base import Fitted
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.features.vocabulary import Vocabulary
from rayrun.config import ConfigError
from rayrun.data.columns import Columns

CLICK = {"click": {"type": "binary", "label": "click"}}
ROWS = pa.table(
    {
        "author": ["ann", "bob", "ann", None],
        "reader": ["bob", "cyd", "cyd", "cyd"],
        "click": [0, 1, 0, 1],
    }
)


def encoder_of(parse, features: dict, rows: pa.Table = ROWS) -> Encoder:
    written = parse(features, CLICK)
    made = FeatureSet(written.features, written.tasks, Columns(), rows.schema)
    rows = made.with_roles(rows)
    return Encoder.fit(made, made.merge([made.summarise(rows)]), made.count(rows))


def test_ids_count_from_the_most_frequent_value(parse):
    encoder = encoder_of(parse, {"who": {"type": "categorical", "column": "author"}})
    assert encoder.encode(ROWS)["c.who"].to_pylist() == [2, 3, 2, 4]
    assert encoder.schema().tables["who"].rows == 5


def test_fields_of_one_table_share_ids_and_counts(parse):
    shared = {"type": "categorical", "table": "people", "dim": 32}
    features = {"a": {**shared, "column": "author"}, "r": {**shared, "column": "reader"}}
    encoder = encoder_of(parse, features)
    table = encoder.encode(ROWS)
    # cyd 3, ann 2, bob 2, null 1
    assert table["c.a"].to_pylist() == [3, 4, 3, 5]
    assert table["c.r"].to_pylist() == [4, 2, 2, 2]
    schema = encoder.schema()
    assert list(schema.tables) == ["people"]
    assert schema.tables["people"].dim == 32
    assert [slot.table for slot in schema.fields] == ["people", "people"]


def test_hashed_ids_need_no_fitting_and_stay_inside_the_table(parse):
    hashed = {"type": "categorical", "column": "v", "encoding": {"type": "hash", "buckets": 10}}
    feature = parse({"h": hashed}).features["h"]
    ids = feature.ids("h", pa.array([*map(str, range(1000)), None]), Fitted({}))
    assert ids.min() == 2
    assert ids.max() == 11
    assert len(np.unique(ids)) == 10
    assert feature.id_table("h", Fitted({})).rows == 12


def test_hashed_ids_are_those_of_the_golden_list(parse):
    hashed = {"type": "categorical", "column": "v", "encoding": {"type": "hash", "buckets": 1000}}
    feature = parse({"h": hashed}).features["h"]
    values = pa.array(["a", "", None, "hello world, longer than eight", "7"])
    assert feature.ids("h", values, Fitted({})).tolist() == [289, 57, 127, 831, 149]


def test_cold_start_reaches_the_schema(parse):
    who = {"type": "categorical", "column": "author", "cold_start": "mean"}
    assert encoder_of(parse, {"who": who}).schema().tables["who"].cold_start == "mean"


@pytest.mark.parametrize("dim", [7, 129])
def test_widths_outside_8_to_128_are_refused(parse, dim):
    with pytest.raises(ConfigError, match=f"dim must be 8 to 128, found {dim}"):
        parse({"a": {"type": "categorical", "column": "a", "dim": dim}})


@pytest.mark.parametrize("dim", [8, 128])
def test_every_field_has_its_own_width(parse, dim):
    assert parse({"a": {"type": "categorical", "column": "a", "dim": dim}}).features["a"].dim == dim


def test_a_hash_has_no_unseen_values_to_start_cold(parse):
    with pytest.raises(ConfigError, match="cold_start: mean needs encoding: vocabulary"):
        parse(
            {
                "a": {
                    "type": "categorical",
                    "column": "a",
                    "encoding": {"type": "hash", "buckets": 9},
                    "cold_start": "mean",
                }
            }
        )


@pytest.mark.parametrize("buckets", [0, 2**31])
def test_impossible_numbers_of_buckets_are_refused(parse, buckets):
    with pytest.raises(ConfigError, match=f"buckets must be 1 to 2147483645, found {buckets}"):
        parse(
            {
                "a": {
                    "type": "categorical",
                    "column": "a",
                    "encoding": {"type": "hash", "buckets": buckets},
                }
            }
        )


def test_impossible_counts_are_refused(parse):
    encoding = {"type": "vocabulary", "min_count": 0}
    with pytest.raises(ConfigError, match="min_count and max_size must be at least 1, found 0"):
        parse({"a": {"type": "categorical", "column": "a", "encoding": encoding}})


def test_lists_are_sent_to_the_sequence_type(parse):
    rows = pa.table({"tags": [["a", "b"]], "click": [1]})
    with pytest.raises(ConfigError, match="one value per row, found the type list.*type: sequence"):
        encoder_of(parse, {"tags": {"type": "categorical", "column": "tags"}}, rows)


def test_the_ids_of_the_encoder_are_those_of_its_vocabulary(encoder, later):
    known: Vocabulary = encoder.vocabularies["item"]
    expected = {v: at + 2 for at, v in enumerate(known.values.to_pylist())}
    ids = encoder.encode(later)["c.item"].to_pylist()
    assert ids == [expected.get(str(v), 1) for v in later["item"].to_pylist()]
    assert 1 in ids
