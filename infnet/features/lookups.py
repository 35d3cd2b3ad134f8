"""What the training rows left behind, by key: statistics and histories, as sorted Arrow tables.

A look-up is a binary search over the key column (`hashing.row_keys`), vectorised over the rows that
ask. Memory: 24 bytes per key of a statistic; a history holds its events.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infnet.features.columns import as_lists, as_numpy, plain, ranges
from rayrun.config import ConfigError


@dataclass(frozen=True)
class Lookup:
    """Rows by key, in ascending order of the key."""

    keys: np.ndarray
    values: pa.Table

    @classmethod
    def of(cls, table: pa.Table, what: str) -> "Lookup":
        """From a table with an int64 column `key`, sorted here if it is not.

        Raises:
            ConfigError: a key stands twice.
        """
        keys = as_numpy(plain(table["key"]))
        if len(keys) > 1 and (keys[1:] <= keys[:-1]).any():
            order = np.argsort(keys, kind="stable")
            keys, table = keys[order], table.take(pa.array(order))
            if (keys[1:] == keys[:-1]).any():
                raise ConfigError(f"{what}: a key stands twice in the look-up table")
        return cls(keys, table.combine_chunks())

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(position of each key, 0 where there is none; whether it is there)."""
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return at, self.keys[at] == keys


def statistics_of(lookup: Lookup, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(count, sum) of each key, float64, 0 where the key is new."""
    at, found = lookup.find(keys)
    if not len(lookup.keys):
        return np.zeros(len(keys)), np.zeros(len(keys))
    count, total = (as_numpy(plain(lookup.values[name]))[at] for name in ("count", "sum"))
    return np.where(found, count, 0.0), np.where(found, total, 0.0)


def histories_of(lookup: Lookup, keys: np.ndarray, times: np.ndarray) -> pa.Array:
    """The events of each key that are strictly earlier than the row's time, oldest first."""
    events = plain(lookup.values["events"])
    at, found = lookup.find(keys)
    if not len(lookup.keys):
        return as_lists(events.values, np.zeros(len(keys), dtype=np.int64))
    offsets = as_numpy(events.offsets).astype(np.int64)
    start, stop = offsets[at], np.where(found, offsets[at + 1], offsets[at])
    when = as_numpy(events.values.field("__time"))
    end = first_not_before(when, start, stop, times)
    lengths = end - start
    return as_lists(events.values.take(pa.array(ranges(start, lengths))), lengths)


def first_not_before(
    when: np.ndarray, start: np.ndarray, stop: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Binary search in many sorted stretches [start, stop) of `when` at once, one time for each."""
    low, high = start.copy(), stop.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        earlier = open_ & (when[np.minimum(middle, len(when) - 1)] < times)
        low = np.where(earlier, middle + 1, low)
        high = np.where(open_ & ~earlier, middle, high)
    return low
