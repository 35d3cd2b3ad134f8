"""The files of a log together: their schema, roles and digest, and what is refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrun.config import ConfigError
from tests.rayrun.data.read import opened, rows, write


def test_a_missing_role_column_names_the_nearest(tmp_path):
    write(tmp_path / "a.csv", "user_id,x\n1,2\n")
    with pytest.raises(
        ConfigError,
        match=r"no column 'userid', which data\.source\.columns\.user needs; the nearest is 'user_id'",
    ):
        opened(tmp_path / "a.csv", columns={"user": "userid"})


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("a.csv", "a,b\n"), ("a.jsonl", "\n")]
)
def test_an_empty_text_log_is_refused(tmp_path, name, content):
    write(tmp_path / name, content)
    with pytest.raises(ConfigError, match="is empty"):
        opened(tmp_path / name)


def test_an_empty_parquet_log_is_refused(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="is empty: none of its 1 files has a row"):
        opened(tmp_path / "a.parquet")


def test_nothing_there_and_nothing_known_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="there is no file or directory"):
        opened(tmp_path / "none")
    write(tmp_path / "notes.md", "x")
    with pytest.raises(ConfigError, match=r"holds no files of a known format.*notes\.md"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match="not known by its extension"):
        opened(tmp_path / "notes.md")
    with pytest.raises(ConfigError, match=r"holds no files that match \*\.csv"):
        opened(tmp_path, files="*.csv")


def test_files_of_one_log_must_agree(tmp_path):
    write(tmp_path / "a.csv", "a,b\n1,2\n")
    write(tmp_path / "b.csv", "a,c\n1,2\n")
    with pytest.raises(ConfigError, match=r"b\.csv has no column 'b'"):
        opened(tmp_path)
    write(tmp_path / "b.csv", "a,b\n1,x\n")
    with pytest.raises(ConfigError, match=r"b\.csv: the column 'b' is string"):
        opened(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match="several formats"):
        opened(tmp_path)


def test_rows_without_user_or_time_are_bad(tmp_path):
    write(tmp_path / "a.csv", "u,t\n1,2022-04-08\n,2022-04-08T01:00:00Z\n3,yesterday\n")
    roles = {"user": "u", "time": {"column": "t", "unit": "iso"}}
    table = rows(opened(tmp_path / "a.csv", columns=roles, types={"u": "int", "t": "text"}), ["t"])
    assert table["__bad"].to_pylist() == [
        None,
        "u: the row has no user",
        "t: no time in unit iso",
    ]


def test_the_digest_holds_content_and_not_the_place(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.csv", "a\n1\n")
    one, two = opened(tmp_path / "one"), opened(tmp_path / "two")
    assert one.content_digest() == two.content_digest()
    assert one.source.digest() == two.source.digest()
    write(tmp_path / "two" / "a.csv", "a\n2\n")
    assert one.content_digest() != two.content_digest()


def test_the_names_of_our_own_columns_are_reserved(tmp_path):
    write(tmp_path / "a.csv", "a,__bad\n1,2\n")
    with pytest.raises(ConfigError, match="the column name __bad is reserved"):
        opened(tmp_path / "a.csv")
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, ["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="the column 'a' stands twice"):
        opened(tmp_path / "a.parquet")


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path):
    write(tmp_path / "a.csv", "a,b\n1,2\n")
    log = opened(tmp_path / "a.csv")
    write(tmp_path / "a.csv", "a,c\n1,2\n")
    with pytest.raises(ConfigError, match=r"a\.csv: .*all files of a log need the same header"):
        rows(log)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_without_values_in_one_file_takes_its_type_from_another(tmp_path, kind):
    if kind == "csv":
        write(tmp_path / "a.csv", "u,n\n1,\n")
        write(tmp_path / "b.csv", "u,n\n2,7\n")
    elif kind == "jsonl":
        write(tmp_path / "a.jsonl", '{"u": 1, "n": null}\n')
        write(tmp_path / "b.jsonl", '{"u": 2, "n": 7}\n')
    else:
        pq.write_table(pa.table({"u": [1], "n": pa.nulls(1)}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"u": [2], "n": [7]}), tmp_path / "b.parquet")
    assert rows(opened(tmp_path))["n"].to_pylist() == [None, 7]
