"""Histories with titles: from any log, from registered sets, from the simulated world."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from rayrun.config import ConfigError, validate
from rayrun.data.sequence_source import SequenceData
from rayrun.data.sequences import open_sequences, told_apart, user_order
from rayrun.data.simulate import SimulatedLog, catalogue
from rayrun.data.world import DAY_MS, START_MS

ROWS = [  # user, item, time, title
    ("b", 7, 30, "围棋 入门"),
    ("a", 1, 10, "Go"),
    ("a", 2, 10, "Chess\n for  all"),
    ("b", 1, 20, "Go"),
    ("a", 3, 5, "Go"),
    ("c", 1, 1, "Go"),
    ("b", 9, 40, "  "),
    ("b", 2, 50, "Chess"),
    ("c", 7, 2, "围棋 入门"),
    ("d", 2, 1, "Chess"),
    ("d", 2, 2, "Chess"),
    ("d", 9, 3, None),
]
NAMES = ("user", "item", "time", "title")


def data(source, **changes):
    return validate(SequenceData, {"source": source, **changes}, where="f.yaml")


def described(path, **changes):
    roles = {"user": "user", "item": "item", "time": {"column": "time"}, "title": "title"}
    return {"path": str(path), "columns": {**roles, **changes}}


@pytest.fixture
def log(tmp_path):
    table = pa.table({n: list(v) for n, v in zip(NAMES, zip(*ROWS, strict=True), strict=True)})
    pq.write_table(table, tmp_path / "log.parquet")
    pacsv.write_csv(table, tmp_path / "log.csv")
    return tmp_path / "log.parquet"


def test_histories_are_in_order_of_time_and_titles_are_told_apart(log):
    found = open_sequences(data(described(log), max_empty_share=0.5))
    assert list(found.titles) == ["围棋 入门", "Go", "Chess for all", "Go (2)"]
    named = {
        user: [found.titles[item] for item in items]
        for user, items in zip(found.users, found.histories, strict=True)
    }
    # Equal times keep the order of the file; c is short, and d is without its untitled event.
    assert named == {
        "a": ["Go (2)", "Go", "Chess for all"],
        "b": ["Go", "围棋 入门", "Chess for all"],
    }
    assert found.counts == {
        "items": 4,
        "titles_empty": 1,
        "titles_duplicate": 1,
        "rows_bad": 0,
        "users_short": 2,
        "users_taken": 2,
        "events": 6,
    }
    assert [items.tolist() for items in found.training()] == [
        h[:-2].tolist() for h in found.histories
    ]


def test_the_digest_is_of_the_content_wherever_and_however_it_is_written(log, tmp_path):
    digests = set()
    for path in (log, tmp_path / "log.csv"):
        digests.add(open_sequences(data(described(path), max_empty_share=0.5)).digest)
    assert len(digests) == 1
    changed = pq.read_table(log).set_column(
        2, "time", pa.array([row[2] + (row[0] == "a") * (30 - 2 * row[2]) for row in ROWS])
    )
    pq.write_table(changed, log)
    assert open_sequences(data(described(log), max_empty_share=0.5)).digest not in digests


def test_without_an_item_column_the_title_is_the_item(log):
    roles = described(log)
    del roles["columns"]["item"]
    found = open_sequences(data(roles, max_empty_share=0.5))
    assert found.counts["titles_duplicate"] == 0
    assert len(found.titles) == 4  # Go, 围棋 入门, Chess, and the one with the line end


def test_a_sample_of_users_is_stable(tmp_path):
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(60), 4)
    table = pa.table(
        {
            "user": user,
            "item": rng.integers(0, 9, len(user)),
            "time": np.arange(len(user)),
            "title": [f"title {i}" for i in range(len(user))],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    source = described(tmp_path / "log.parquet")
    twenty, ten = (open_sequences(data(source, users=n)) for n in (20, 10))
    assert list(ten.users) == list(twenty.users)[:10]
    assert list(ten.users) == user_order(map(str, range(60)), 0)[:10]
    assert set(open_sequences(data(source, users=10, seed=1)).users) != set(ten.users)
    for place, name in enumerate(ten.users):
        assert len(ten.histories[place]) == 4
        whole = np.asarray(table.filter(pc.equal(table["user"], int(name)))["time"])
        assert len(whole) == 4


def test_suffixes_never_meet_a_title_that_stands_there():
    assert told_apart(["x", "x (2)", "x", "x"]) == (["x", "x (2)", "x (3)", "x (4)"], 2)


@pytest.mark.parametrize("language", ["en", "zh", "both"])
def test_simulated_histories_are_the_clicked_videos(language):
    source = data({"type": "simulate", "users": 40, "items": 50, "rows": 900, "language": language})
    found = open_sequences(source)
    log = SimulatedLog(source.source)
    rows = pa.concat_tables(t for f in log.fragments() for t in log.read(f))
    clicked = rows.filter(pc.equal(rows["is_click"], 1)).sort_by("time_ms")
    for user, items in zip(found.users, found.histories, strict=True):
        own = clicked.filter(pc.equal(clicked["user_id"], int(user)))
        assert items.tolist() == own["video_id"].to_pylist()
    titles = catalogue(source.source)
    english, chinese = titles["title"].to_pylist(), titles["title_zh"].to_pylist()
    both = [f"{e} {z}" for e, z in zip(english, chinese, strict=True)]
    assert list(found.titles) == {"en": english, "zh": chinese, "both": both}[language]


def test_of_a_simulated_log_the_first_days_alone_may_be_read():
    simulated = {"type": "simulate", "users": 40, "items": 50, "rows": 900}
    found = open_sequences(data({**simulated, "days": 7.5}))
    log = SimulatedLog(data(simulated).source)
    rows = pa.concat_tables(t for f in log.fragments() for t in log.read(f))
    early = pc.less(rows["time_ms"], START_MS + 7 * DAY_MS + DAY_MS // 2)
    clicked = rows.filter(pc.and_(pc.equal(rows["is_click"], 1), early)).sort_by("time_ms")
    for user, items in zip(found.users, found.histories, strict=True):
        own = clicked.filter(pc.equal(clicked["user_id"], int(user)))
        assert items.tolist() == own["video_id"].to_pylist()
    assert len(found.titles) == 50  # the catalogue is whole


def test_a_part_number_counts_from_the_most_watched():
    source = data({"type": "simulate", "items": 300}).source
    log = SimulatedLog(source)
    kinds: dict[str, list[tuple[int, float]]] = {}
    for title, chance in zip(
        catalogue(source)["title"].to_pylist(), log.world.popularity, strict=True
    ):
        kind, number = title.rsplit(" ", 1)
        kinds.setdefault(kind, []).append((int(number), float(chance)))
    for parts in kinds.values():
        by_number = [chance for _, chance in sorted(parts)]
        assert by_number == sorted(by_number, reverse=True)


# ---------------------------------------------------------------------------------------------
# Registered sets


def published(root, name, column, items, **samples):
    folder = root / name
    folder.mkdir()
    pq.write_table(
        pa.table({"item_id": list(items), column: list(items.values())}), folder / "items.parquet"
    )
    for file, columns in samples.items():
        pq.write_table(pa.table(columns), folder / f"{file}.parquet")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("amazon_games2018_seq", "title"),
        ("amazon_beauty2014_seq", "text_id"),
        ("amazon_toys2014_seq", "text_id"),
    ],
)
def test_lists_by_user_are_read(tmp_path, monkeypatch, name, column):
    lists = {"user_id": [4, 5, 6, 7], "items": [[1, 2, 3, 1], [3, 2, 1], [1, 2], [2, 9, 3, 1]]}
    published(tmp_path, name, column, {1: "A", 2: "B", 3: "C", 9: ""}, sequences=lists)
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    found = open_sequences(data(name, max_empty_share=0.3))
    named = dict(zip(found.users, (h.tolist() for h in found.histories), strict=True))
    assert named == {"4": [0, 1, 2, 0], "5": [2, 1, 0], "7": [1, 2, 0]}
    assert found.counts["users_short"] == 1
    two = open_sequences(data(name, max_empty_share=0.3, users=2))
    assert list(two.users) == user_order(["4", "5", "7"], 0)[:2] == list(found.users)[:2]


SAMPLES = {
    "user_id": [1, 1, 1, 1, 2, 2],
    "item_id": [10, 11, 12, 10, 10, 11],
    "label": [1, 0, 1, 0, 1, 1],
    "timestamp": [5, 6, 7, 8, 1, 2],
    "history": [[], [10], [10], [10, 12], [], [10]],
    "split": ["train", "train", "valid", "test", "train", "train"],
}


def test_rated_samples_keep_their_own_split_and_labels(tmp_path, monkeypatch):
    published(tmp_path, "movielens_1m_collm", "title", {10: "A", 11: "B", 12: "C"}, samples=SAMPLES)
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    found = open_sequences(data("movielens_1m_collm"))
    rated = found.rated
    assert list(found.users) == ["1"]
    assert (rated.item.tolist(), rated.label.tolist()) == ([0, 1, 2, 0], [1, 0, 1, 0])
    assert (rated.part.tolist(), rated.position.tolist()) == ([0, 0, 1, 2], [0, 1, 2, 3])
    assert [h.tolist() for h in rated.history] == [[], [0], [0], [0, 2]]
    assert [h.tolist() for h in found.training()] == [[0]]  # likes of the train part alone


def test_a_split_that_is_not_known_is_refused(tmp_path, monkeypatch):
    odd = {**SAMPLES, "split": ["train", "train", "valid", "later", "train", "train"]}
    published(tmp_path, "movielens_1m_collm", "title", {10: "A", 11: "B", 12: "C"}, samples=odd)
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="split must be one of train, valid, .*, found 'later'"):
        open_sequences(data("movielens_1m_collm"))


# ---------------------------------------------------------------------------------------------
# Refusals


def test_untitled_items_above_the_share_are_refused(log):
    message = r"1 of 5 items have no title, more than data.max_empty_share \(0.1\)"
    with pytest.raises(ConfigError, match=message):
        open_sequences(data(described(log), max_empty_share=0.1))


def test_a_log_of_short_histories_is_refused(log):
    pq.write_table(pq.read_table(log).slice(0, 3), log)
    with pytest.raises(
        ConfigError, match=r"has no user with 3 events of titled items \(2 users have"
    ):
        open_sequences(data(described(log)))


def test_a_missing_column_of_titles_is_named(log):
    with pytest.raises(ConfigError, match="has no column 'titel'.*the nearest is 'title'"):
        open_sequences(data(described(log, title="titel")))


def test_a_registered_set_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("INFNET_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"INFNET_DATA is not set. Ways(.|\n)*RUCAIBox/LLMRank"):
        open_sequences(data("amazon_games2018_seq"))
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="but there is no amazon_games2018_seq in it"):
        open_sequences(data("amazon_games2018_seq"))


def test_a_registered_set_with_other_columns_or_a_damaged_file_is_refused(tmp_path, monkeypatch):
    lists = {"user_id": [1], "things": [[1, 2, 3]]}
    published(tmp_path, "amazon_games2018_seq", "title", {1: "A", 2: "B", 3: "C"}, sequences=lists)
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="has no column 'items'"):
        open_sequences(data("amazon_games2018_seq"))
    (tmp_path / "amazon_games2018_seq" / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="cannot be read .* write or fetch it again"):
        open_sequences(data("amazon_games2018_seq"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "amazon_game2018_seq",
            r"under 'amazon_game2018_seq'; the nearest is 'amazon_games2018_seq'",
        ),
        ({"type": "s3"}, r"a source of histories is the name of a registered set"),
        ({"path": "x", "columns": {"user": "u"}}, r"source.columns.title: Field required"),
    ],
)
def test_a_source_that_is_none_is_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        data(source)


def test_the_source_survives_a_round_trip():
    for source in ("amazon_toys2014_seq", described("x"), {"type": "simulate", "language": "zh"}):
        first = data(source)
        assert validate(SequenceData, json.loads(first.model_dump_json()), where="again") == first
