import pyarrow as pa
import pytest

from infnet.data import rows
from infnet.data.prepare import open_reader
from infnet.features.base import VocabularyDemand
from tests.infnet.data import logs


@pytest.fixture
def reader(tmp_path):
    return open_reader(logs.config(logs.write(tmp_path / "log", logs.table(), 50)))


def blocks(reader):
    return [table for index in range(len(reader.fragments)) for table in reader.read(index)]


def test_counts_cut_into_parts_are_the_counts_of_the_whole(reader):
    features, whole = reader.features, pa.concat_tables(blocks(reader))
    (expected,) = rows.count_values(features, whole, 1)
    cut = [rows.count_values(features, block, 5) for block in blocks(reader)]
    merged = [features.merge_counts([block[part] for block in cut]) for part in range(5)]
    for name, table in expected.items():
        found = pa.concat_tables([part[name] for part in merged])
        assert found.num_rows == table.num_rows  # no value is in two parts
        assert found.sort_by("value").equals(table.sort_by("value"))


def test_findings_do_not_depend_on_how_the_rows_were_cut(reader):
    one = rows.find(reader, pa.concat_tables(blocks(reader)))
    merged = rows.merge(reader.features, [rows.find(reader, block) for block in blocks(reader)])
    assert merged == rows.merge(reader.features, [one])


def test_only_the_counts_that_can_enter_a_vocabulary_are_kept():
    counts = pa.table({"value": ["a", "b", "c", "d"], "count": [5, 1, 7, 5]})
    demand = VocabularyDemand(columns=("x",), min_count=2, max_size=2)
    assert rows.most_frequent(counts, demand)["value"].to_pylist() == ["c", "a"]


def test_a_row_is_named_by_file_and_position(reader):
    assert reader.place(123).endswith("log.parquet, row 124")
