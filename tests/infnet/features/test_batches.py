import numpy as np
import pyarrow as pa
import pytest
import torch

from infnet.features.batches import to_batch
from infnet.schema import DenseSlot, FieldSlot, Schema, SequenceSlot, TableSpec
from infnet.tasks import BinaryTask
from rayrun.config import ConfigError

SCHEMA = Schema(
    tables={"a": TableSpec(rows=9, dim=8), "b": TableSpec(rows=9, dim=8)},
    fields=(FieldSlot(name="b", table="b"), FieldSlot(name="a", table="a")),
    dense=(
        DenseSlot(name="pair", width=2, kind="numeric"),
        DenseSlot(name="one", width=1, kind="statistic"),
    ),
    sequences=(SequenceSlot(name="s", max_length=4, tables=("a", "b"), fields=("a", "b")),),
    tasks={"click": BinaryTask(label="click"), "like": BinaryTask(label="like")},
    encoder_digest="sha256:0",
)

TABLE = pa.table(
    {
        "row_id": pa.array([5, 6, 7]),
        "user": pa.array([1, 1, 2]),
        "time": pa.array([0, 0, 0]),
        "weight": pa.array([1.0, 0.5, 2.0], pa.float32()),
        "c.a": pa.array([2, 3, 4], pa.int32()),
        "c.b": pa.array([5, 6, 7], pa.int32()),
        "d.pair": pa.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], pa.list_(pa.float32(), 2)),
        "d.one": pa.array([0.1, 0.2, 0.3], pa.float32()),
        "s.s.ids.a": pa.array([[2], [], [3, 4, 5]], pa.list_(pa.int32())),
        "s.s.ids.b": pa.array([[6], [], [7, 8, 2]], pa.list_(pa.int32())),
        "s.s.ages": pa.array([[1.5], [], [3.0, 2.0, 1.0]], pa.list_(pa.float32())),
        "y.click": pa.array([1.0, None, 0.0], pa.float32()),
        "y.like": pa.array([None, None, 1.0], pa.float32()),
    }
)


def test_columns_stand_in_the_order_of_the_schema():
    batch = to_batch(TABLE, SCHEMA)
    assert batch.ids.tolist() == [[5, 2], [6, 3], [7, 4]]
    torch.testing.assert_close(
        batch.dense, torch.tensor([[1, 0, 0.1], [2, 0, 0.2], [0, 1, 0.3]]), rtol=0, atol=0
    )
    assert batch.weight.tolist() == [1, 0.5, 2]
    assert batch.user.tolist() == [1, 1, 2]
    assert batch.row_id.tolist() == [5, 6, 7]


def test_sequences_are_padded_on_the_right_with_0():
    sequence = to_batch(TABLE, SCHEMA).sequences["s"]
    assert sequence.lengths.tolist() == [1, 0, 3]
    assert sequence.ids.tolist() == [
        [[2, 6], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
        [[3, 7], [4, 8], [5, 2]],
    ]
    assert sequence.ages.tolist() == [[1.5, 0, 0], [0, 0, 0], [3, 2, 1]]
    assert sequence.valid.sum(1).tolist() == [1, 0, 3]


def test_rows_without_any_event_have_one_column_of_padding():
    sequence = to_batch(TABLE.slice(1, 1), SCHEMA).sequences["s"]
    assert sequence.ids.tolist() == [[[0, 0]]]


def test_unknown_labels_are_0_and_not_observed():
    batch = to_batch(TABLE, SCHEMA)
    assert batch.labels.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert batch.observed.tolist() == [[True, False], [False, False], [True, True]]


def test_a_batch_of_a_part_is_the_part_of_the_batch():
    order = [2, 0, 1, 2, 1]
    taken = to_batch(TABLE.take(order), SCHEMA)
    whole = to_batch(TABLE, SCHEMA)[torch.tensor(order)]
    for name in ("ids", "dense", "labels", "observed", "user"):
        assert torch.equal(getattr(taken, name), getattr(whole, name))
    assert torch.equal(taken.sequences["s"].ids, whole.sequences["s"].ids)


def test_a_batch_may_be_written_to():
    batch = to_batch(TABLE, SCHEMA)
    for tensor in (batch.weight, batch.user, batch.row_id, batch.dense, batch.labels):
        tensor.zero_()
    assert TABLE["weight"].to_pylist() == [1, 0.5, 2]


def test_another_schema_is_noticed():
    with pytest.raises(ConfigError, match="the shard has no column 'c.b', which the schema needs"):
        to_batch(TABLE.drop_columns(["c.b"]), SCHEMA)
    wide = TABLE.set_column(
        TABLE.column_names.index("d.one"),
        "d.one",
        pa.array(np.eye(3).tolist(), pa.list_(pa.float32(), 3)),
    )
    with pytest.raises(ConfigError, match="'d.one' has 3 numbers per row, the schema needs 1"):
        to_batch(wide, SCHEMA)
