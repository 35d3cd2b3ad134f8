"""JSON lines and Parquet: what comes out, and what is bad."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrun.config import ConfigError
from tests.rayrun.data.read import opened, rows, write


def test_json_lines_are_read_and_odd_lines_marked(tmp_path):
    lines = [json.dumps({"u": i, "x": i / 2, "t": [i, i]}) for i in range(5)]
    lines.insert(2, "{broken")
    write(tmp_path / "a.jsonl", "\n".join(lines) + "\n[1]\n")
    table = rows(opened(tmp_path / "a.jsonl"))
    assert table["u"].to_pylist() == [0, 1, None, 2, 3, 4, None]
    assert table["t"][0].as_py() == [0, 0]
    assert table["__bad"][2].as_py().startswith("line 3 is no JSON object")
    assert "found list" in table["__bad"][6].as_py()


def test_parquet_fragments_cover_every_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr("rayrun.data.readers.parquet.FRAGMENT_ROWS", 250)
    for part in range(2):
        table = pa.table({"a": np.arange(1000) + 1000 * part})
        pq.write_table(table, tmp_path / f"p{part}.parquet", row_group_size=100)
    log = pickle.loads(pickle.dumps(opened(tmp_path)))
    table = rows(log)
    assert len(log.fragments()) == 10
    assert table["a"].to_pylist() == list(range(2000))
    ids = table["__row_id"].to_numpy()
    assert list(ids) == [*range(1000), *((1 << 40) + i for i in range(1000))]


def test_parquet_dictionaries_and_large_strings_become_plain(tmp_path):
    table = pa.table(
        {
            "d": pa.array(["x", "y"]).dictionary_encode(),
            "s": pa.array(["p", "q"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = rows(opened(tmp_path / "a.parquet"))
    assert found.schema.field("d").type == found.schema.field("s").type == pa.string()


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"a": np.random.default_rng(0).random(20_000)}), path, write_page_checksum=True
    )
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        data[100:5000] = bytes(4900)
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=r"a\.parquet cannot be read .*no complete Parquet file"):
        rows(opened(path))


def test_nan_in_json_is_missing_and_half_a_character_is_bad(tmp_path):
    write(tmp_path / "a.jsonl", '{"x": NaN, "t": "a"}\n{"x": 1.5, "t": "\\ud800"}\n')
    table = rows(opened(tmp_path / "a.jsonl"))
    assert table["x"].to_pylist() == [None, 1.5]
    assert table["__bad"].to_pylist() == [None, "t: '\\ud800' is not of type text"]


def test_parquet_says_between_which_values_a_column_lies(tmp_path):
    times = pa.array([5, None, 3, 9], pa.timestamp("ms"))
    table = pa.table({"n": [{"x": 1}] * 4, "t": times, "s": ["b", "a", "d", "c"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    log = opened(tmp_path)
    low, high = log.bounds("t")
    assert pa.array([low, high], pa.timestamp("ms")).cast(pa.int64()).to_pylist() == [3, 9]
    assert log.bounds("s") is None
    pq.write_table(table, tmp_path / "b.parquet", write_statistics=False)
    assert opened(tmp_path).bounds("t") is None
    write(tmp_path / "c.csv", "t\n1\n")
    assert opened(tmp_path / "c.csv").bounds("t") is None
