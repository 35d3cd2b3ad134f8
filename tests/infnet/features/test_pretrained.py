import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.features import PretrainedFeature
from infnet.features.base import Fitted
from rayrun.config import ConfigError


@pytest.fixture
def write(tmp_path):
    def written(**columns) -> str:
        path = tmp_path / "v.parquet"
        pq.write_table(pa.table(columns), path)
        return str(path)

    return written


def feature(path: str, **settings) -> PretrainedFeature:
    return PretrainedFeature(**{"column": "item", "path": path, "width": 2, **settings})


def test_a_row_gets_the_vector_of_its_value_or_zeros_and_an_indicator(write):
    made = feature(write(id=[5, 3], vector=[[1.0, 2.0], [3.0, 4.0]]))
    fitted = Fitted({}, vectors=made.read_vectors("v"))
    found = made.encode("v", pa.table({"item": ["3", "5", "9", None]}), fitted)["d.v"]
    assert found.to_pylist() == [[3, 4, 0], [1, 2, 0], [0, 0, 1], [0, 0, 1]]


def test_a_file_without_rows_knows_no_vector(write):
    made = feature(write(id=pa.array([], pa.int64()), vector=pa.array([], pa.list_(pa.float32()))))
    fitted = Fitted({}, vectors=made.read_vectors("v"))
    assert made.encode("v", pa.table({"item": [1]}), fitted)["d.v"].to_pylist() == [[0, 0, 1]]


def test_the_file_may_name_its_columns_otherwise(write):
    made = feature(write(code=["a"], embedding=[[1, 2]]), key="code", vector="embedding")
    fitted = Fitted({}, vectors=made.read_vectors("v"))
    assert made.encode("v", pa.table({"item": ["a"]}), fitted)["d.v"].to_pylist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"vector": [[1, 2]]}, r"features\.v\.key: .* has no column 'id'; it has vector"),
        ({"id": [1]}, r"features\.v\.vector: .* has no column 'vector'; it has id"),
        ({"id": [1], "vector": [[1, 2, 3]]}, r"features\.v\.width is 2, the vectors of .* have 3"),
        ({"id": [1, 1], "vector": [[1, 2], [3, 4]]}, "a value of id stands twice"),
        ({"id": [1], "vector": [[1.0, None]]}, "a vector of .* has a number that is not finite"),
    ],
)
def test_a_file_of_another_form_is_refused(write, columns, message):
    with pytest.raises(ConfigError, match=message):
        feature(write(**columns)).read_vectors("v")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"features\.v\.path: there is no file .*none\.parquet"):
        feature(str(tmp_path / "none.parquet")).read_vectors("v")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "v.parquet").write_text("id,vector")
    with pytest.raises(ConfigError, match=r"features\.v\.path: .* is not readable"):
        feature(str(tmp_path / "v.parquet")).read_vectors("v")


def test_the_place_of_the_file_is_not_part_of_the_digest(write):
    path = write(id=[1], vector=[[1, 2]])
    assert feature(path).digest() == feature("s3://elsewhere/v.parquet").digest()
    assert feature(path).digest() != feature(path, key="code").digest()


@pytest.mark.parametrize("width", [0, 4097])
def test_impossible_widths_are_refused(parse, width):
    with pytest.raises(ConfigError, match=f"width must be 1 to 4096, found {width}"):
        parse({"v": {"type": "pretrained", "column": "i", "path": "p", "width": width}})
