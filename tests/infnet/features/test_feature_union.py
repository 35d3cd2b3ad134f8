"""What holds for every feature type: encode → Parquet → load, and one row at a time."""

import io
import pickle
import typing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infnet.features import Feature
from infnet.features.batches import to_batch
from infnet.features.encoder import Encoder
from rayrun.config import ConfigError

TYPES = [
    typing.get_args(member.model_fields["type"].annotation)[0]
    for member in typing.get_args(typing.get_args(Feature)[0])
]


def through_parquet(table: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=17)
    return pq.read_table(io.BytesIO(buffer.getvalue()))


def columns_of(name: str, table: pa.Table) -> list[str]:
    return [c for c in table.column_names if c.split(".")[1:2] == [name] and c[0] in "cds"]


def test_the_union_of_the_tests_has_every_type(union):
    assert {settings["type"] for settings in union.values()} == set(TYPES)
    assert len(TYPES) >= 8


def test_encoded_rows_survive_parquet_and_become_the_same_batch(encoder, later):
    table = encoder.encode(later)
    schema = encoder.schema()
    direct, stored = to_batch(table, schema), to_batch(through_parquet(table), schema)
    for name in ("ids", "dense", "labels", "observed", "weight", "user", "row_id"):
        assert torch.equal(getattr(direct, name), getattr(stored, name)), name
    for name, sequence in direct.sequences.items():
        for part in ("ids", "ages", "lengths"):
            assert torch.equal(getattr(sequence, part), getattr(stored.sequences[name], part))


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_is_encoded_as_if_it_were_alone(kind, union, encoder, later):
    whole = encoder.encode(later)
    names = [c for n, s in union.items() if s["type"] == kind for c in columns_of(n, whole)]
    assert names
    for at in (0, 7, later.num_rows - 1):
        alone = encoder.encode(later.slice(at, 1))
        assert alone.select(names).equals(whole.select(names).slice(at, 1))


def test_chunks_and_their_order_change_nothing(encoder, later):
    whole = encoder.encode(later)
    chunked = pa.concat_tables([later.slice(0, 5), later.slice(5, 0), later.slice(5)])
    assert encoder.encode(chunked).equals(whole)
    order = np.random.default_rng(0).permutation(later.num_rows)
    assert encoder.encode(later.take(order)).equals(whole.take(order).combine_chunks())


def test_the_batch_has_the_widths_of_the_schema_and_ids_inside_their_tables(encoder, later):
    schema = encoder.schema()
    batch = to_batch(encoder.encode(later), schema)
    assert batch.dense.shape == (later.num_rows, schema.dense_width)
    assert torch.isfinite(batch.dense).all()
    for at, slot in enumerate(schema.fields):
        assert batch.ids[:, at].min() >= 1
        assert batch.ids[:, at].max() < schema.tables[slot.table].rows
    for slot in schema.sequences:
        sequence = batch.sequences[slot.name]
        assert sequence.lengths.max() <= slot.max_length
        for at, table in enumerate(slot.tables):
            ids = sequence.ids[..., at]
            assert ((ids > 0) == sequence.valid).all()
            assert ids.max() < schema.tables[table].rows


def test_empty_tables_are_encoded_too(encoder, later):
    table = encoder.encode(later.slice(0, 0))
    assert table.num_rows == 0
    assert table.schema == encoder.encode(later).schema
    assert len(to_batch(table, encoder.schema())) == 0


def test_an_encoder_travels_by_pickle(encoder, later):
    light = pickle.loads(pickle.dumps(encoder.without_lookups()))
    assert light.encode(later).equals(encoder.encode(later))
    assert light.schema() == encoder.schema()


def test_a_light_encoder_says_that_it_cannot_derive(encoder, log):
    with pytest.raises(ConfigError, match=r"features\.clicks needs its look-up table"):
        encoder.without_lookups().derive(log)


def test_files_of_other_types_are_read_as_the_log_was(encoder, later):
    changed = later.set_column(
        later.column_names.index("item"), "item", later["item"].cast(pa.string())
    )
    changed = changed.set_column(
        changed.column_names.index("user"), "user", changed["user"].cast(pa.float64())
    )
    assert encoder.encode(changed).equals(encoder.encode(later))


def test_values_that_cannot_be_of_the_logs_type_are_refused(encoder, later):
    words = pa.array(["x"] * later.num_rows)
    changed = later.set_column(later.column_names.index("item"), "item", words)
    with pytest.raises(ConfigError, match=r"column 'item' must be of type int64, as in the log"):
        encoder.encode(changed)


def test_a_missing_column_is_named(encoder, later):
    with pytest.raises(ConfigError, match="the column 'number' is required, the rows have"):
        encoder.encode(later.drop_columns(["number"]))


def test_prediction_needs_no_label_and_no_weight(encoder: Encoder, later):
    bare = later.drop_columns(["click", "spend", "weight"])
    table = encoder.encode(bare, labels=False)
    with_labels = encoder.encode(later)
    unlabelled = ["weight", "y.click", "y.spend"]
    assert table.drop_columns(unlabelled).equals(with_labels.drop_columns(unlabelled))
    assert table["y.click"].null_count == table.num_rows
    assert set(table["weight"].to_pylist()) == {1.0}


def test_without_a_user_role_every_row_is_its_own_user(parse, log):
    from infnet.features.feature_set import FeatureSet
    from rayrun.data.columns import Columns

    written = parse({"n": {"type": "numeric", "column": "number"}}, {"click": _binary()})
    features = FeatureSet(written.features, written.tasks, Columns(), log.schema)
    encoder = Encoder.fit(features, features.merge([features.summarise(log)]), {})
    table = encoder.encode(log)
    assert table["user"].to_pylist() == table["row_id"].to_pylist()
    assert set(table["time"].to_pylist()) == {0}


def _binary() -> dict:
    return {"type": "binary", "label": "click"}
