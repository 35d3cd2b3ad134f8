"""Side tables: joined by key, or refused with what does not fit."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrun.config import ConfigError
from tests.rayrun.data.read import opened, rows, write


def test_side_tables_are_joined_by_key(tmp_path):
    write(tmp_path / "log.csv", "u,i\n5,a\n9,b\n,a\n5,zz\n")
    write(tmp_path / "users.csv", "u,age\n9,90\n5,50\n")
    write(tmp_path / "items.csv", "item,age\nb,2\na,1\n")
    tables = [
        {"path": "users.csv", "key": "u"},
        {"path": "items.csv", "key": "item", "on": "i", "prefix": "item_"},
    ]
    log = opened(tmp_path, tables=tables)
    table = rows(log)
    assert log.schema.names == ["u", "i", "age", "item_age"]
    assert table["age"].to_pylist() == [50, 90, None, 50]
    assert table["item_age"].to_pylist() == [1, 2, 1, None]
    assert rows(log, ["item_age"]).column_names == ["item_age", "__row_id", "__bad"]


@pytest.mark.parametrize(
    ("users", "table", "message"),
    [
        ("u,age\n5,1\n5,2\n", {"path": "users.csv", "key": "u"}, "u = 5 stands twice"),
        ("u,i\n5,1\n", {"path": "users.csv", "key": "u"}, "'i' of the side table .* is already in"),
        ("u,age\n5,1\n", {"path": "users.csv", "key": "v"}, "has no column 'v'"),
        ("v,age\n5,1\n", {"path": "users.csv", "key": "v"}, "log.csv has no column 'v'"),
        (
            "u,age\n5,1\n",
            {"path": "nobody.csv", "key": "u"},
            "side table 'nobody.csv' is not there",
        ),
        ("u,age\n5\n", {"path": "users.csv", "key": "u"}, "a row that cannot be read"),
    ],
)
def test_a_side_table_that_does_not_fit_is_explained(tmp_path, users, table, message):
    write(tmp_path / "log.csv", "u,i\n5,a\n")
    write(tmp_path / "users.csv", users)
    with pytest.raises(ConfigError, match=message):
        rows(opened(tmp_path, files="log.csv", tables=[table]))


def test_a_side_table_of_an_unknown_format_is_refused(tmp_path):
    write(tmp_path / "log.csv", "u\n1\n")
    write(tmp_path / "users.data", "u,age\n1,2\n")
    table = {"path": "users.data", "key": "u"}
    with pytest.raises(
        ConfigError, match=r"users\.data: the format is not known.*set tables\.format"
    ):
        opened(tmp_path, tables=[table])
    joined = rows(opened(tmp_path, tables=[{**table, "format": "csv"}]))
    assert joined["age"].to_pylist() == [2]


def test_a_number_finds_the_same_key_written_as_text(tmp_path):
    write(tmp_path / "log.csv", "u\n1\n2\n")
    write(tmp_path / "users.csv", "u,town\n1,X\n2,Y\nguest,Z\n")
    log = opened(tmp_path, files="log.csv", tables=[{"path": "users.csv", "key": "u"}])
    assert rows(log)["town"].to_pylist() == ["X", "Y"]


@pytest.mark.parametrize("key", ["1", "a"])
def test_rows_of_a_side_table_without_a_key_are_left_out(tmp_path, key):
    write(tmp_path / "log.csv", f"u\n{key}\n")
    write(tmp_path / "users.csv", f"u,town\n,V\n{key},X\n,W\n")
    log = opened(tmp_path, files="log.csv", tables=[{"path": "users.csv", "key": "u"}])
    assert rows(log)["town"].to_pylist() == ["X"]


def test_keys_beyond_63_bits_are_found(tmp_path):
    keys = pa.array([2**64 - 1, 5, 2**63], pa.uint64())
    pq.write_table(pa.table({"u": keys}), tmp_path / "log.parquet")
    pq.write_table(pa.table({"u": keys, "n": [1, 2, 3]}), tmp_path / "users.parquet")
    log = opened(tmp_path, files="log.parquet", tables=[{"path": "users.parquet", "key": "u"}])
    assert rows(log)["n"].to_pylist() == [1, 2, 3]


def test_a_role_from_a_side_table_is_checked_whatever_is_read(tmp_path):
    write(tmp_path / "log.csv", "card\n1\n2\n")
    write(tmp_path / "cards.csv", "card,owner\n1,x\n")
    tables = [{"path": "cards.csv", "key": "card"}]
    log = opened(tmp_path, files="log.csv", tables=tables, columns={"user": "owner"})
    assert rows(log, ["card"])["__bad"].to_pylist() == [None, "owner: the row has no user"]
