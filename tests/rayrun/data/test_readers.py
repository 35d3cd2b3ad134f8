"""Readers of files: what comes out, what is bad, and what is refused."""

import gzip
import json
import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrun.config import ConfigError, validate
from rayrun.data.source import PathSource, open_source


def opened(path, **more):
    return open_source(validate(PathSource, {"path": str(path), **more}, where="test"))


def rows(log, columns=None):
    return pa.concat_tables(t for f in log.fragments() for t in log.read(f, columns))


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def test_a_csv_is_typed_by_its_values(tmp_path):
    write(tmp_path / "a.csv", "user,price,name,zip,ok\n1,2.5,x,01234,true\n2,,y,02345,false\n")
    table = rows(opened(tmp_path / "a.csv"))
    assert [str(t) for t in table.schema.types[:5]] == [
        "int64",
        "double",
        "string",
        "string",
        "bool",
    ]
    assert table["price"].to_pylist() == [2.5, None]
    assert table["__row_id"].to_pylist() == [0, 1]
    assert table["__bad"].null_count == 2


def test_a_value_of_the_wrong_type_marks_its_row_and_keeps_it(tmp_path):
    lines = [f"{i},{i}" for i in range(200)]
    lines[150] = "150,abc"
    write(tmp_path / "a.csv", "user,clicks\n" + "\n".join(lines) + "\n")
    table = rows(opened(tmp_path / "a.csv"))
    assert table.num_rows == 200
    assert table["__bad"][150].as_py() == "clicks: 'abc' is not of type int"
    assert table["clicks"][150].as_py() is None
    assert table["__bad"].null_count == 199


def test_rows_of_a_wrong_width_stay_in_their_place(tmp_path):
    write(tmp_path / "a.csv", 'a,b\n1,"x\ny"\n2\n\n3,z,4\n5,w\n6\n')
    table = rows(opened(tmp_path / "a.csv"))
    assert table["a"].to_pylist() == [1, None, None, 5, None]
    assert table["b"].to_pylist() == ["x\ny", None, None, "w", None]
    assert table["__bad"].to_pylist() == [
        None,
        "1 values instead of 2: 2",
        "3 values instead of 2: 3,z,4",
        None,
        "1 values instead of 2: 6",
    ]
    assert table["__row_id"].to_pylist() == [0, 1, 2, 3, 4]


def test_wrong_widths_are_put_back_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("rayrun.data.readers.text.BLOCK_BYTES", 64)
    lines = [f"{i},v{i}" if i % 7 else f"{i}" for i in range(500)]
    write(tmp_path / "a.csv", "a,b\n" + "\n".join(lines) + "\n")
    table = rows(opened(tmp_path / "a.csv", types={"a": "int", "b": "text"}))
    assert table["a"].to_pylist() == [i if i % 7 else None for i in range(500)]
    assert [i for i, why in enumerate(table["__bad"].to_pylist()) if why] == list(range(0, 500, 7))


def test_bytes_that_are_no_utf8_make_a_bad_row(tmp_path):
    write(tmp_path / "a.csv", b"a,b\n1,good\n2,b\xe9d\n")
    table = rows(opened(tmp_path / "a.csv"))
    assert table["b"].to_pylist() == ["good", None]
    assert "is not utf-8 text" in table["__bad"][1].as_py()


def test_another_encoding_and_delimiter_are_described(tmp_path):
    write(tmp_path / "a.csv", "a;b\n1;é\n", "latin-1")
    table = rows(opened(tmp_path / "a.csv", text={"encoding": "latin-1", "delimiter": ";"}))
    assert table.to_pylist()[0]["b"] == "é"


def test_a_delimiter_of_two_characters_survives_block_borders(tmp_path, monkeypatch):
    lines = [f"{i}::tit:le {i}::{i % 5}" for i in range(3000)]
    write(tmp_path / "a.dat", "\n".join(lines) + "\n")
    log = opened(
        tmp_path / "a.dat", text={"delimiter": "::", "header": ["id", "title", "n"], "quote": ""}
    )
    monkeypatch.setattr("rayrun.data.readers.text.BLOCK_BYTES", 997)
    table = rows(log)
    assert table["id"].to_pylist() == list(range(3000))
    assert table["title"][7].as_py() == "tit:le 7"
    assert table["__bad"].null_count == 3000


def test_gzip_is_read_and_a_cut_file_is_refused(tmp_path):
    data = ("a,b\n" + "".join(f"{i},{i * 7919 % 1000}\n" for i in range(50_000))).encode()
    whole = gzip.compress(data)
    write(tmp_path / "a.csv.gz", whole)
    assert rows(opened(tmp_path / "a.csv.gz")).num_rows == 50_000
    write(tmp_path / "b.csv.gz", whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"b\.csv\.gz cannot be read .*fetch it again"):
        rows(opened(tmp_path / "b.csv.gz"))


def test_a_quote_that_is_never_closed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("rayrun.data.readers.text.BLOCK_BYTES", 256)
    write(tmp_path / "a.csv", "a,b\n1,x\n" + '2,"open\n' + "3,y\n" * 500)
    with pytest.raises(ConfigError, match=r"a\.csv.*quote is not closed"):
        rows(opened(tmp_path / "a.csv"))


def test_a_header_with_a_double_column_is_refused(tmp_path):
    write(tmp_path / "a.csv", "a,b,a\n1,2,3\n")
    with pytest.raises(ConfigError, match="the column 'a' stands twice in the header"):
        opened(tmp_path / "a.csv")


def test_lists_are_split(tmp_path):
    write(tmp_path / "a.csv", 'a,tags\n1,"[3, 4]"\n2,\n3,"5,x"\n')
    table = rows(opened(tmp_path / "a.csv", types={"tags": "list[int]"}))
    assert table["tags"].to_pylist() == [[3, 4], None, None]
    assert table["__bad"][2].as_py() == "tags: '5,x' is not of type list[int]"


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


def test_the_digest_holds_content_and_not_the_place(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.csv", "a\n1\n")
    one, two = opened(tmp_path / "one"), opened(tmp_path / "two")
    assert one.content_digest() == two.content_digest()
    assert one.source.digest() == two.source.digest()
    write(tmp_path / "two" / "a.csv", "a\n2\n")
    assert one.content_digest() != two.content_digest()


def test_memory_does_not_grow_with_the_length_of_a_csv(tmp_path, monkeypatch):
    monkeypatch.setattr("rayrun.data.readers.text.BLOCK_BYTES", 1 << 16)

    def peak(count):
        path = tmp_path / f"{count}.csv"
        line = "".join(f"{i % 97},{i},text {i % 1000}\n" for i in range(20_000))
        path.write_text("a,b,c\n" + line * count)
        log = opened(path)
        pa.default_memory_pool().release_unused()
        before = pa.total_allocated_bytes()
        highest = 0
        tracemalloc.start()
        for table in log.read(log.fragments()[0]):
            assert table.num_rows <= 65_536
            highest = max(highest, pa.total_allocated_bytes() - before)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest + python

    assert peak(64) < 1.5 * peak(16)


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


def test_names_written_with_digits_stay_text(tmp_path):
    write(tmp_path / "a.csv", "ad,key\n12_3,18446744073709551615\n1_23,18446744073709551614\n")
    table = rows(opened(tmp_path / "a.csv"))
    assert table["ad"].to_pylist() == ["12_3", "1_23"]  # Python would read both as 123
    assert table["key"].to_pylist() == ["18446744073709551615", "18446744073709551614"]


def test_a_number_with_an_underscore_is_bad(tmp_path):
    write(tmp_path / "a.csv", "price,n\n1_0.5,1_0\n")
    table = rows(opened(tmp_path / "a.csv", types={"price": "float", "n": "int"}))
    assert table["__bad"].to_pylist() == ["price: '1_0.5' is not of type float"]
    assert (table["price"].null_count, table["n"].null_count) == (1, 1)


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


def test_a_column_without_any_value_is_of_text(tmp_path):
    write(tmp_path / "a.csv", "u,n\n1,\n2,\n")
    assert opened(tmp_path / "a.csv").schema.field("n").type == pa.string()


def test_nan_in_json_is_missing_and_half_a_character_is_bad(tmp_path):
    write(tmp_path / "a.jsonl", '{"x": NaN, "t": "a"}\n{"x": 1.5, "t": "\\ud800"}\n')
    table = rows(opened(tmp_path / "a.jsonl"))
    assert table["x"].to_pylist() == [None, 1.5]
    assert table["__bad"].to_pylist() == [None, "t: '\\ud800' is not of type text"]


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


def test_a_delimiter_is_written_in_the_encoding_of_the_file(tmp_path):
    write(tmp_path / "a.csv", "a§b\né§2\n", encoding="latin-1")
    text = {"delimiter": "§", "encoding": "latin-1"}
    write(tmp_path / "b.csv", "a§b\né§2\n")
    signed = {"delimiter": "§", "encoding": "utf-8-sig"}
    for name, described in (("a.csv", text), ("b.csv", {"delimiter": "§"}), ("b.csv", signed)):
        table = rows(opened(tmp_path / name, text=described))
        assert (table["a"].to_pylist(), table["b"].to_pylist()) == (["é"], [2])
