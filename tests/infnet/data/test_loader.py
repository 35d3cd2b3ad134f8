import gc
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.data.loader import TrainLoader, scan
from infnet.data.shards import FORMAT_VERSION, KIND, open_shards
from infnet.schema import FieldSlot, Schema, SequenceSlot, TableSpec
from infnet.tasks import BinaryTask
from rayrun import manifest
from rayrun.config import ConfigError

SCHEMA = Schema(
    tables={"item": TableSpec(rows=10_000, dim=8)},
    fields=(FieldSlot(name="item", table="item"),),
    dense=(),
    sequences=(SequenceSlot(name="past", max_length=4, tables=("item",), fields=("item",)),),
    tasks={"click": BinaryTask(label="click")},
    encoder_digest="sha256:one",
)


def shard(ids, length=3):
    rows = len(ids)
    offsets = np.arange(0, rows * length + 1, length, dtype=np.int32)
    events = np.repeat(ids, length) % 9_000 + 2
    return pa.table(
        {
            "row_id": ids,
            "user": ids // 7,
            "time": ids,
            "weight": np.ones(rows, np.float32),
            "c.item": (ids % 9_000 + 2).astype(np.int32),
            "s.past.ids.item": pa.ListArray.from_arrays(offsets, pa.array(events.astype(np.int32))),
            "s.past.ages": pa.ListArray.from_arrays(offsets, pa.array(events.astype(np.float32))),
            "y.click": pa.array((ids % 2).astype(np.float32), mask=ids % 5 == 0),
        }
    )


def write(directory, sizes, *, split="train", group=64, length=3):
    (directory / split).mkdir(parents=True)
    start, rows = 0, {}
    for number, size in enumerate(sizes):
        name = f"{split}/part-{number:05d}.parquet"
        table = shard(np.arange(start, start + size), length)
        pq.write_table(table, directory / name, row_group_size=group, write_page_checksum=True)
        rows[name], start = size, start + size
    manifest.write(
        directory,
        kind=KIND,
        format_version=FORMAT_VERSION,
        config={},
        info={"encoder_digest": SCHEMA.encoder_digest, "shards": rows},
    )
    return str(directory)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("dataset"), [500, 333, 700, 1, 466])  # 2,000 rows


def loader(uri, *, rank=0, world_size=1, batch_size=64, lanes=4, shuffle_rows=100, seed=5):
    return TrainLoader(
        uri,
        SCHEMA,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        lanes=lanes,
        shuffle_rows=shuffle_rows,
        seed=seed,
    )


def row_ids(batches):
    return [batch.row_id.tolist() for batch in batches]


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_together_see_the_rows_that_one_worker_sees_step_by_step(dataset, world_size):
    alone = row_ids(loader(dataset).epoch(0))
    parts = [
        row_ids(loader(dataset, rank=r, world_size=world_size).epoch(0)) for r in range(world_size)
    ]
    assert len(alone) == 31
    for step, rows in enumerate(alone):
        together = [row for part in parts for row in part[step]]
        assert len(together) == 64
        assert sorted(together) == sorted(rows)


def test_every_row_comes_at_most_once_per_epoch_and_only_the_last_batch_is_dropped(dataset):
    rows = np.concatenate(row_ids(loader(dataset).epoch(0)))
    assert len(rows) == 2000 // 64 * 64
    assert len(set(rows.tolist())) == len(rows)


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 13, 30, 31])
def test_an_epoch_resumed_at_any_step_gives_the_rows_that_were_left(dataset, start):
    whole = row_ids(loader(dataset).epoch(2))
    assert row_ids(loader(dataset).epoch(2, start_step=start)) == whole[start:]


def test_epochs_and_seeds_have_orders_of_their_own_and_repeat_them(dataset):
    first, second = row_ids(loader(dataset).epoch(0)), row_ids(loader(dataset).epoch(1))
    assert first != second
    assert first == row_ids(loader(dataset).epoch(0))
    assert first != row_ids(loader(dataset, seed=6).epoch(0))


def test_a_batch_holds_what_the_shard_holds(dataset):
    batch = next(iter(loader(dataset).epoch(0)))
    ids = batch.row_id.numpy()
    np.testing.assert_array_equal(batch.ids[:, 0], ids % 9000 + 2)
    np.testing.assert_array_equal(batch.sequences["past"].lengths, np.full(64, 3))
    np.testing.assert_array_equal(batch.observed[:, 0], ids % 5 != 0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 64, 5000])
def test_a_scan_gives_every_row_once_in_order(dataset, world_size, batch_size):
    rows = [
        row
        for rank in range(world_size)
        for batch in row_ids(
            scan(dataset, "train", SCHEMA, batch_size, rank=rank, world_size=world_size)
        )
        for row in batch
    ]
    assert rows == list(range(2000))


def test_an_abandoned_epoch_leaves_no_thread_behind(dataset):
    import threading

    before = threading.active_count()
    batches = loader(dataset).epoch(0)
    next(iter(batches))
    batches.close()
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    def peak(uri):
        gc.collect()
        pool = pa.default_memory_pool()
        tracemalloc.start()
        most = 0
        for _ in loader(uri, shuffle_rows=512, batch_size=256).epoch(0):
            most = max(most, pool.bytes_allocated() + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        return most

    small = write(tmp_path / "small", [2_000] * 4, group=512, length=50)
    large = write(tmp_path / "large", [2_000] * 40, group=512, length=50)
    peak(small)  # what is loaded once
    assert peak(large) < 2 * peak(small)  # ten times the rows


# -- bad input --------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    return tmp_path, write(tmp_path / "set", [300, 300])


def test_a_truncated_shard_is_named(damaged):
    _, uri = damaged
    path = Path(uri, "train/part-00001.parquet")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"part-00001.parquet is truncated"):
        loader(uri)


def test_a_shard_with_one_flipped_bit_is_named(damaged):
    _, uri = damaged
    path = Path(uri, "train/part-00000.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"part-00000.parquet is damaged"):
        loader(uri)
    with pytest.raises(ConfigError, match=r"part-00000.parquet is missing, truncated or corrupt"):
        list(loader(uri, rank=1, world_size=2).epoch(0))  # only rank 0 reads the digests


def test_a_shard_with_other_rows_than_the_manifest_says_is_named(damaged):
    _, uri = damaged
    pq.write_table(shard(np.arange(7)), f"{uri}/train/part-00000.parquet")
    shards = open_shards(uri, "train", SCHEMA, verify=False)
    with pytest.raises(ConfigError, match=r"7 rows, 300 expected"):
        list(shards.read(shards.files[0]))


def test_the_schema_of_another_dataset_is_refused(dataset):
    other = SCHEMA.model_copy(update={"encoder_digest": "sha256:two"})
    with pytest.raises(ConfigError, match=r"is the schema of another dataset"):
        next(iter(scan(dataset, "train", other, 64)))


def test_a_dataset_of_a_newer_format_is_refused(damaged):
    _, uri = damaged
    path = Path(uri, "manifest.json")
    text = path.read_text().replace('"format_version": 1', '"format_version": 99')
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"format_version 99"):
        loader(uri)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lanes": 4, "world_size": 3},
            r"train.lanes \(4\) must be a multiple of the workers \(3\)",
        ),
        ({"batch_size": 66}, r"train.batch_size \(66\) must be a multiple .* the nearest is 64"),
        ({"shuffle_rows": 0}, r"train.shuffle_rows must be at least 1, found 0"),
        ({"batch_size": 4096}, r"train.batch_size \(4096\) is more than the 2000 training rows"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(dataset, settings, message):
    with pytest.raises(ConfigError, match=message):
        loader(dataset, **settings)


def test_reading_ahead_overlaps_with_the_consumer():
    from infnet.data.prefetch import prefetch

    def slow():
        for number in range(5):
            time.sleep(0.05)
            yield number

    started = time.monotonic()
    for _ in prefetch(slow(), 2):
        time.sleep(0.05)
    assert time.monotonic() - started < 0.45  # one after the other: 0.5


def test_an_error_of_the_reader_comes_at_its_place():
    from infnet.data.prefetch import prefetch

    def failing():
        yield 1
        raise OSError("no such disk")

    items = prefetch(failing(), 2)
    assert next(items) == 1
    with pytest.raises(OSError, match="no such disk"):
        next(items)
