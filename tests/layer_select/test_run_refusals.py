"""What `layer-select run` refuses before its first stage."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from layer_select.cli import main
from tests.layer_select.conftest import TINY

SAMPLES = {
    "user_id": [1, 1, 1, 2, 2],
    "item_id": [10, 11, 12, 10, 11],
    "label": [1, 1, 1, 1, 1],
    "timestamp": [5, 6, 7, 1, 2],
    "history": [[], [10], [10, 11], [], [10]],
    "split": ["train", "train", "valid", "train", "train"],
}


def test_another_domain_without_test_samples_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, capsys
):
    """MovieLens-1M as CoLLM splits it, of which the test part is not published."""
    folder = tmp_path / "data" / "movielens_1m_collm"
    folder.mkdir(parents=True)
    titles = {"item_id": [10, 11, 12], "title": ["A", "B", "C"]}
    pq.write_table(pa.table(titles), folder / "items.parquet")
    pq.write_table(pa.table(SAMPLES), folder / "samples.parquet")
    monkeypatch.setenv("INFNET_DATA", str(tmp_path / "data"))
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps({**TINY, "evaluate": {"data": {"source": "movielens_1m_collm"}}}))
    assert main(["run", str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "task.test asks for 64 samples, but movielens_1m_collm has none" in error
    assert not (tmp_path / "out").exists()
