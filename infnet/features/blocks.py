"""Raw columns of a request in blocks: the columns of one type as one array, read by one call.

A call of NumPy or Arrow costs a microsecond or ten whatever it works on, and a request of one
candidate has as many columns as one of a thousand. What `hashing` and `columns` find for a block is
what they find for each of its columns: they look at each value alone.

Shapes: c columns of the block, R rows.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, UInt64

from infnet.features.columns import numbers
from infnet.features.hashing import hash_values


class Block:
    """Columns of one type, one after the other in one array."""

    def __init__(self, names: Sequence[str], values: pa.Array) -> None:
        """`values` holds the values of the first column, then those of the second, and so on."""
        self.names = tuple(names)
        self.values = values
        self.place = {name: at for at, name in enumerate(self.names)}

    @cached_property
    def hashes(self) -> UInt64[np.ndarray, "c R"]:
        """`hash_values` of every column."""
        return hash_values(self.values).reshape(len(self.names), -1)

    @cached_property
    def numbers(self) -> tuple[Float64[np.ndarray, "c R"], Bool[np.ndarray, "c R"]]:
        """`columns.numbers` of every column."""
        values, bad = numbers(self.values)
        return values.reshape(len(self.names), -1), bad.reshape(len(self.names), -1)


class Blocks(Mapping[str, pa.Array]):
    """Columns by name, of the same number of rows. Each stands in one block."""

    def __init__(self, blocks: Sequence[Block], rows: int) -> None:
        self.blocks = tuple(blocks)
        self.rows = rows
        self._block = {name: block for block in self.blocks for name in block.names}

    def __getitem__(self, name: str) -> pa.Array:
        """One column."""
        block = self._block[name]
        return block.values.slice(block.place[name] * self.rows, self.rows)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._block)

    def __len__(self) -> int:
        """Number of columns (`rows` is that of rows)."""
        return len(self._block)

    def __contains__(self, name: object) -> bool:
        return name in self._block

    def hashes(self, name: str) -> UInt64[np.ndarray, " R"]:
        """`hash_values` of a column."""
        block = self._block[name]
        return block.hashes[block.place[name]]

    def numbers(self, name: str) -> tuple[Float64[np.ndarray, " R"], Bool[np.ndarray, " R"]]:
        """`columns.numbers` of a column."""
        block = self._block[name]
        values, bad = block.numbers
        return values[block.place[name]], bad[block.place[name]]

    def without(self, names: Collection[str]) -> "Blocks":
        """The columns that have none of these names."""
        if self._block.keys().isdisjoint(names):
            return self
        kept = [name for name in self if name not in names]
        return Blocks([Block([name], self[name]) for name in kept], self.rows)

    def between(self, start: int, stop: int) -> "Blocks":
        """The rows from `start` to before `stop`."""
        stop = min(stop, self.rows)
        if start == 0 and stop == self.rows:
            return self
        taken = np.arange(start, stop)
        blocks = []
        for block in self.blocks:
            first = np.arange(len(block.names))[:, None] * self.rows
            blocks.append(Block(block.names, block.values.take(pa.array((first + taken).ravel()))))
        return Blocks(blocks, stop - start)
