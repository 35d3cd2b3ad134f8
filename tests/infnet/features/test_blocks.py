"""What is found for a block of columns is what is found for each of them alone."""

import numpy as np
import pyarrow as pa
import pytest

from infnet.features.blocks import Block, Blocks
from infnet.features.columns import numbers
from infnet.features.hashing import hash_values

COLUMNS = {
    "a": pa.array(["1", None, " 2.5 "]),
    "b": pa.array(["", "x", "long text of many bytes"]),
    "n": pa.array([0.5, None, -1.0]),
}


@pytest.fixture
def blocks() -> Blocks:
    text = pa.concat_arrays([COLUMNS["a"], COLUMNS["b"]])
    return Blocks([Block(["a", "b"], text), Block(["n"], COLUMNS["n"])], 3)


def assert_columns(found: Blocks, expected: dict[str, pa.Array]) -> None:
    assert {name: found[name].to_pylist() for name in found} == {
        name: values.to_pylist() for name, values in expected.items()
    }
    for name, values in expected.items():
        assert found.hashes(name).tolist() == hash_values(values).tolist()
        for ours, theirs in zip(found.numbers(name), numbers(values), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_column_of_a_block_is_read_as_if_it_stood_alone(blocks):
    assert_columns(blocks, COLUMNS)
    assert (len(blocks), blocks.rows, "b" in blocks, "c" in blocks) == (3, 3, True, False)


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (2, 9), (0, 3)])
def test_some_rows_are_those_of_every_column(blocks, start, stop):
    found = blocks.between(start, stop)
    assert found.rows == min(stop, 3) - start
    assert_columns(found, {n: v.slice(start, stop - start) for n, v in COLUMNS.items()})


def test_columns_that_are_taken_out_leave_the_others_as_they_are(blocks):
    assert_columns(blocks.without(["a", "c"]), {n: COLUMNS[n] for n in ("b", "n")})
    assert blocks.without(["c"]) is blocks
