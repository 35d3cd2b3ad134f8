"""Sets with their own split keep it: likes are next items, likes and dislikes are answers."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layer_select.task.config import HeadTask, SequenceData, YesNoTask
from layer_select.task.run import open_task
from rayrun.config import ConfigError, validate

ITEMS = {10: "Go", 11: "Zoo", 12: "围棋", 13: "Tea"}
ROWS = [  # user, item, label, time, history, split
    (1, 10, 1, 1, [], "train"),
    (1, 11, 0, 2, [10], "train"),
    (1, 12, 1, 3, [10], "train"),
    (1, 13, 1, 4, [10, 12], "valid"),
    (2, 11, 1, 1, [], "train"),
    (2, 12, 0, 2, [11], "train"),
    (2, 10, 0, 3, [11], "valid"),
]
SIZES = {"calibration": 9, "validation": 9, "max_tokens": 60}


@pytest.fixture
def rated_data(tmp_path, monkeypatch) -> SequenceData:
    folder = tmp_path / "movielens_1m_collm"
    folder.mkdir()
    items = {"item_id": list(ITEMS), "title": list(ITEMS.values())}
    pq.write_table(pa.table(items), folder / "items.parquet")
    names = ("user_id", "item_id", "label", "timestamp", "history", "split")
    columns = {n: list(v) for n, v in zip(names, zip(*ROWS, strict=True), strict=True)}
    pq.write_table(pa.table(columns), folder / "samples.parquet")
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    return validate(SequenceData, {"source": "movielens_1m_collm"}, where="test")


def shown(task, part):
    titles, users = task.sequences.titles, task.sequences.users
    return {
        (users[s.user], titles[s.item], s.label, *(titles[i] for i in s.history))
        for s in task.samples[part]
    }


def test_parts_and_labels_are_those_of_the_file(rated_data, tokenizer):
    head = open_task(rated_data, HeadTask(**SIZES, test=0), tokenizer=tokenizer, vocab_size=97)
    assert shown(head, "calibration") == {("1", "围棋", 1, "Go")}
    assert shown(head, "validation") == {("1", "Tea", 1, "Go", "围棋")}
    asked = open_task(rated_data, YesNoTask(**SIZES, test=0), tokenizer=tokenizer, vocab_size=97)
    assert shown(asked, "calibration") == {
        ("1", "围棋", 1, "Go"),
        ("1", "Zoo", 0, "Go"),
        ("2", "围棋", 0, "Zoo"),
    }
    assert shown(asked, "validation") == {("1", "Tea", 1, "Go", "围棋"), ("2", "Go", 0, "Zoo")}
    batch = asked.batches("validation")[0]
    labels = [asked.samples["validation"][n].label for n in batch.sample.tolist()]
    assert batch.target.tolist() == labels


def test_a_part_without_samples_is_refused_where_it_is_asked_for(rated_data, tokenizer):
    message = "task.test asks for 5 samples, but movielens_1m_collm has none for that part; set"
    with pytest.raises(ConfigError, match=message):
        open_task(rated_data, HeadTask(**SIZES, test=5), tokenizer=tokenizer, vocab_size=97)


def test_a_question_needs_an_item_that_was_never_taken(tmp_path, tokenizer):
    rows = {"user": [1] * 4, "item": [0, 1, 0, 1], "time": [1, 2, 3, 4], "title": ["Go", "Zoo"] * 2}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    roles = {"user": "user", "item": "item", "time": {"column": "time"}, "title": "title"}
    source = {"path": str(tmp_path / "log.parquet"), "columns": roles}
    data = validate(SequenceData, {"source": source}, where="test")
    with pytest.raises(ConfigError, match=r"never took, but the catalogue of .* has only 2 items"):
        for seed in range(20):
            task = YesNoTask(**{**SIZES, "test": 1, "seed": seed})
            open_task(data, task, tokenizer=tokenizer, vocab_size=97)
