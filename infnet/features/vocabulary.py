"""Vocabularies: which values have an id of their own. Counted over training rows only.

`count` a block of rows, `merge` the counts, `Vocabulary.fit` once. The most frequent value gets the
first id, ties are broken by the text, null last: the ids do not depend on how the rows were
grouped.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from infnet.features.columns import pc, plain, text
from infnet.features.hashing import hash_values
from infnet.schema import FIRST_KNOWN, UNKNOWN

_UNKNOWN = np.int32(UNKNOWN)
COUNTS = pa.schema([("value", pa.string()), ("count", pa.int64())])


def count(values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Distinct values (as text, null included) with their counts."""
    counted = pc.value_counts(text(values))
    return pa.table([counted.field("values"), counted.field("counts")], schema=COUNTS)


def merge(counts: Iterable[pa.Table]) -> pa.Table:
    """Counts of several blocks as one."""
    together = pa.concat_tables([COUNTS.empty_table(), *counts])
    summed = together.group_by("value").aggregate([("count", "sum")])
    return pa.table([summed["value"], summed["count_sum"]], schema=COUNTS)


class Vocabulary:
    """Known values in the order of their ids: the first has id 2 (0 is padding, 1 is unknown)."""

    def __init__(self, values: pa.Array | pa.ChunkedArray) -> None:
        self.values = text(values)
        hashes = hash_values(self.values)
        order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[order]
        self._ids = (order + FIRST_KNOWN).astype(np.int32)
        assert len(order) < 2 or (self._sorted[1:] != self._sorted[:-1]).all(), "64-bit collision"

    @classmethod
    def fit(cls, counts: pa.Table, *, min_count: int, max_size: int) -> "Vocabulary":
        """The `max_size` most frequent values seen at least `min_count` times."""
        kept = counts.filter(pc.greater_equal(counts["count"], min_count))
        order = pc.sort_indices(
            kept,
            sort_keys=[("count", "descending", "at_end"), ("value", "ascending", "at_end")],
        )
        return cls(plain(kept["value"].take(order[:max_size])))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def rows(self) -> int:
        """Rows of an embedding table for it, padding and unknown included."""
        return len(self) + FIRST_KNOWN

    def ids(self, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int32 ids; 1 where the value is not in the vocabulary."""
        return self.find(hash_values(values))

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """`ids` of values whose hashes are known."""
        if not len(self._ids):
            return np.full(len(hashes), UNKNOWN, dtype=np.int32)
        at = self._sorted.searchsorted(hashes)
        known = self._sorted.take(at, mode="clip") == hashes  # past the end there is none
        return np.where(known, self._ids.take(at, mode="clip"), _UNKNOWN)

    def table(self) -> pa.Table:
        """One column `value`, in the order of the ids."""
        return pa.table({"value": self.values})
