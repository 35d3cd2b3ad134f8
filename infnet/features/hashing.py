"""Stable 64-bit hashes of values, vectorised over Arrow buffers.

A value is hashed as UTF-8 text (see `columns.text`), eight bytes at a time, with the finaliser of
SplitMix64 (Steele, Lea, Flood 2014) as the mixing step. The result depends on nothing but the text:
not on the platform, the process, the batch or the Arrow layout. A golden test holds it, for hashes
stand in files.

Among n distinct values the expected number of colliding pairs is n² / 2⁶⁵ (3 · 10⁻⁶ for ten
million) and, with B buckets, n² / 2B. It is no cryptographic hash: it hides nothing.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from infnet.features.columns import column, text

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0x1F83D9ABFB41BD6B)
FURTHER = 1
"""Seed of the second and later columns of a key, so that (a, b) and (b, a) differ."""
_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(8)] + [2**64 - 1], dtype=np.uint64)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of uint64; every input bit moves every output bit."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_values(values: pa.Array | pa.ChunkedArray, seed: int = 0) -> np.ndarray:
    """uint64 hash of each value's text; null has a hash of its own."""
    array = text(values)
    count = len(array)
    _, offsets_buffer, data = array.buffers()
    result = np.full(count, mix(np.array([seed], dtype=np.uint64))[0], dtype=np.uint64)
    if count == 0:
        return result
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[array.offset : array.offset + count + 1]
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    size = int(offsets[-1] - offsets[0])
    padded = np.zeros(size + 8, dtype=np.uint8)
    if size:
        padded[:size] = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
    starts = starts - int(offsets[0])
    words = np.ndarray((size + 1,), dtype="<u8", buffer=padded, strides=(1,))  # one per byte offset
    result = mix(result ^ lengths.astype(np.uint64))
    active = np.arange(count)
    at = 0
    while len(active := active[lengths[active] > at]):
        left = np.minimum(lengths[active] - at, 8)
        word = words[starts[active] + at] & _BYTES[left]
        result[active] = mix(result[active] ^ word)
        at += 8
    if array.null_count:
        result[array.is_null().to_numpy(zero_copy_only=False)] = mix(
            np.array([_NULL ^ np.uint64(seed)])
        )
    return result


def row_keys(rows: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """int64 in [0, 2⁶³): one key per row for the values of some columns, in their order.

    The `user` column of shards and the keys of the look-up tables are made by it.
    """
    first, *others = columns
    return as_keys(
        hash_values(column(rows, first)),
        *(hash_values(column(rows, name), seed=FURTHER) for name in others),
    )


def as_keys(key: np.ndarray, *further: np.ndarray) -> np.ndarray:
    """`row_keys` of hashes: those of the first column, and of further ones (seed `FURTHER`)."""
    for hashes in further:
        key = mix(key) ^ hashes
    return (key >> np.uint64(1)).astype(np.int64)
