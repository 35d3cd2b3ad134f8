"""From shards to batches: the training stream, which resumes exact to the row, and the plain scan.

The rows of training step k depend on the seed, the number of lanes and the epoch, and not on the
number of workers, so one worker and eight learn from the same global batches:

    epoch  ─ permute the shards ─▶ N rows in a row
           ─ cut into L lanes: lane l holds rows [l·N/L, (l+1)·N/L)
    lane   ─ windows of about `shuffle_rows` rows, permuted by (seed, epoch, lane, window)
    step k ─ rows [k·b, (k+1)·b) of every lane, b = batch_size / L
    worker ─ number r serves the lanes l ≡ r mod the number of workers

Memory of a worker: the windows of its lanes, and a few batches.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from infnet.batch import Batch
from infnet.data.prefetch import prefetch
from infnet.data.shards import Shards, SplitName, open_shards
from infnet.features.batches import to_batch
from infnet.schema import Schema
from rayrun.config import ConfigError

PREFETCHED_BATCHES = 4


class TrainLoader:
    """This worker's part of each global batch of training rows, in an order fixed by the seed."""

    def __init__(
        self,
        dataset_uri: str,
        schema: Schema,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        lanes: int,
        shuffle_rows: int,
        seed: int,
    ) -> None:
        """Open the training shards; `batch_size` counts the rows of all workers together.

        Raises:
            ConfigError: the numbers do not divide, fewer rows than one batch, or a damaged dataset.
        """
        if lanes < 1 or lanes % world_size:
            raise ConfigError(
                f"train.lanes ({lanes}) must be a multiple of the workers ({world_size}); "
                f"the nearest is {max(1, round(lanes / world_size)) * world_size}"
            )
        if batch_size < lanes or batch_size % lanes:
            raise ConfigError(
                f"train.batch_size ({batch_size}) must be a multiple of train.lanes ({lanes}); "
                f"the nearest is {max(1, round(batch_size / lanes)) * lanes}"
            )
        if shuffle_rows < 1:
            raise ConfigError(f"train.shuffle_rows must be at least 1, found {shuffle_rows}")
        self.schema = schema
        self._shards = open_shards(dataset_uri, "train", schema, verify=rank == 0)
        self._lanes, self._mine, self._seed = lanes, range(rank, lanes, world_size), seed
        self._lane_batch = batch_size // lanes
        # whole steps per window: a step never needs two windows of a lane
        self._window = max(1, shuffle_rows // self._lane_batch) * self._lane_batch
        self.steps_per_epoch = self._shards.rows // lanes // self._lane_batch
        """Global batches of an epoch; the last incomplete one is dropped."""
        if not self.steps_per_epoch:
            raise ConfigError(
                f"train.batch_size ({batch_size}) is more than the {self._shards.rows} training "
                f"rows of {dataset_uri}; lower it"
            )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on; a thread reads ahead.

        Starting in the middle gives exactly the batches that an uninterrupted epoch gives from
        there.

        Raises:
            ConfigError: a shard is damaged.
        """
        return prefetch(self._batches(epoch, start_step), PREFETCHED_BATCHES)

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        shuffle = np.random.default_rng([self._seed, epoch])
        order = shuffle.permutation(len(self._shards.files)).tolist()
        shards = self._shards.reordered(order)
        lanes = [_Lane(shards, self._bounds(lane), self._window) for lane in self._mine]
        for step in range(start_step, self.steps_per_epoch):
            parts: list[pa.Table] = []
            for number, lane in zip(self._mine, lanes, strict=True):
                window, offset = divmod(step * self._lane_batch, self._window)
                lane.move_to(window, [self._seed, epoch, number, window])
                parts.append(lane.rows(offset, self._lane_batch))
            yield to_batch(pa.concat_tables(parts), self.schema)

    def _bounds(self, lane: int) -> tuple[int, int]:
        rows = self._shards.rows
        return lane * rows // self._lanes, (lane + 1) * rows // self._lanes


class _Lane:
    """One stream of training rows, of which one permuted window is in memory."""

    def __init__(self, shards: Shards, bounds: tuple[int, int], window_rows: int) -> None:
        self._shards, self._bounds, self._window_rows = shards, bounds, window_rows
        self._window = -1
        self._table: pa.RecordBatch | None = None
        self._order = np.empty(0, np.int64)

    def move_to(self, window: int, seed: list[int]) -> None:
        if window == self._window:
            return
        self._table = None  # frees the old window before the new one is read
        start = self._bounds[0] + window * self._window_rows
        stop = min(start + self._window_rows, self._bounds[1])
        pieces = [
            piece
            for shard, first, last in self._shards.ranges(start, stop)
            for piece in self._shards.read(shard, first, last)
        ]
        (self._table,) = pa.concat_tables(pieces).combine_chunks().to_batches()
        self._order = np.random.default_rng(seed).permutation(stop - start)
        self._window = window

    def rows(self, offset: int, count: int) -> pa.Table:
        assert self._table is not None
        taken = self._table.take(pa.array(self._order[offset : offset + count]))
        return pa.Table.from_batches([taken])


def scan(
    dataset_uri: str,
    split: SplitName,
    schema: Schema,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """All rows of a split once, in the order of the shards.

    Worker `rank` reads one of `world_size` equal parts.

    Raises:
        ConfigError: a damaged dataset, or one prepared for another schema.
    """
    shards = open_shards(dataset_uri, split, schema, verify=rank == 0)
    start, stop = (part * shards.rows // world_size for part in (rank, rank + 1))
    tables = _regrouped(shards, start, stop, batch_size)
    return prefetch((to_batch(table, schema) for table in tables), PREFETCHED_BATCHES)


def _regrouped(shards: Shards, start: int, stop: int, batch_size: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    count = 0
    for shard, first, last in shards.ranges(start, stop):
        for piece in shards.read(shard, first, last):
            held.append(piece)
            count += piece.num_rows
            while count >= batch_size:
                table = pa.concat_tables(held)
                yield table.slice(0, batch_size)
                held, count = [table.slice(batch_size)], count - batch_size
    if count:
        yield pa.concat_tables(held)
