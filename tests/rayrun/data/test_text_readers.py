"""Text: what comes out, what is bad, and what is refused."""

import gzip
import tracemalloc

import pyarrow as pa
import pytest

from rayrun.config import ConfigError
from tests.rayrun.data.read import opened, rows, write


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


def test_memory_does_not_grow_with_the_length_of_a_csv(tmp_path, monkeypatch):
    block = 1 << 16
    monkeypatch.setattr("rayrun.data.readers.text.BLOCK_BYTES", block)
    path = tmp_path / "long.csv"
    line = "".join(f"{i % 97},{i},text {i % 1000}\n" for i in range(20_000))
    path.write_text("a,b,c\n" + line * 80)
    log = opened(path)
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    tables = log.read(log.fragments()[0])
    next(tables)  # what is imported by the first one is no memory of the reader
    highest = 0
    tracemalloc.start()
    for table in tables:
        assert table.num_rows <= 65_536
        highest = max(highest, pa.total_allocated_bytes() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Arrow reads up to 32 blocks ahead of the parser, as many as its thread happens to get to: the
    # bound is that queue and as much again for what is parsed, and the file is far longer.
    assert path.stat().st_size > 6 * 64 * block
    assert highest + python < 64 * block


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


def test_a_column_without_any_value_is_of_text(tmp_path):
    write(tmp_path / "a.csv", "u,n\n1,\n2,\n")
    assert opened(tmp_path / "a.csv").schema.field("n").type == pa.string()


def test_a_delimiter_is_written_in_the_encoding_of_the_file(tmp_path):
    write(tmp_path / "a.csv", "a§b\né§2\n", encoding="latin-1")
    text = {"delimiter": "§", "encoding": "latin-1"}
    write(tmp_path / "b.csv", "a§b\né§2\n")
    signed = {"delimiter": "§", "encoding": "utf-8-sig"}
    for name, described in (("a.csv", text), ("b.csv", {"delimiter": "§"}), ("b.csv", signed)):
        table = rows(opened(tmp_path / name, text=described))
        assert (table["a"].to_pylist(), table["b"].to_pylist()) == (["é"], [2])
