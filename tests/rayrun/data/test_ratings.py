"""Ratings beside histories: read with their events, checked, and part of the digest."""

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from rayrun.config import ConfigError, validate
from rayrun.data.sequence_source import SequenceData
from rayrun.data.sequences import open_sequences
from rayrun.data.world import World, stars

ROWS = [  # user, item, time, title, rating
    ("a", 1, 30, "Go", 5),
    ("a", 2, 10, "Chess", 1),
    ("b", 1, 20, "Go", 2),
    ("a", 3, 20, "Tea", 4),
    ("b", 9, 30, " ", 3),
    ("b", 2, 10, "Chess", 3),
    ("b", 3, 40, "Tea", 5),
]
NAMES = ("user", "item", "time", "title", "rating")


def data(source, **changes):
    given = {"source": source, "max_empty_share": 0.5, **changes}
    return validate(SequenceData, given, where="f.yaml")


def described(path, **roles):
    named = {"user": "user", "item": "item", "time": {"column": "time"}, "title": "title"}
    return {"path": str(path), "columns": {**named, **roles}}


def written(path, rows=ROWS):
    table = pa.table({n: list(v) for n, v in zip(NAMES, zip(*rows, strict=True), strict=True)})
    (pacsv.write_csv if path.suffix == ".csv" else pq.write_table)(table, path)
    return path


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_ratings_stay_with_their_events_in_order_of_time(tmp_path, name):
    found = open_sequences(data(described(written(tmp_path / name), rating="rating")))
    named = {
        user: [(found.titles[i], int(r)) for i, r in zip(items, given, strict=True)]
        for user, items, given in zip(found.users, found.histories, found.ratings, strict=True)
    }
    assert named == {
        "a": [("Chess", 1), ("Tea", 4), ("Go", 5)],
        "b": [("Chess", 3), ("Go", 2), ("Tea", 5)],
    }


def test_ratings_enter_the_digest_only_where_there_are_some(tmp_path):
    path = written(tmp_path / "log.parquet")
    with_ratings = open_sequences(data(described(path, rating="rating"))).digest
    without = open_sequences(data(described(path)))
    assert without.ratings is None
    assert without.digest != with_ratings
    written(path, [(*row[:4], 6 - row[4]) for row in ROWS])
    assert open_sequences(data(described(path))).digest == without.digest
    assert open_sequences(data(described(path, rating="rating"))).digest != with_ratings


def test_the_digest_of_a_source_without_ratings_is_what_it_was_before_there_were_any():
    source = {"type": "simulate", "users": 40, "items": 50, "rows": 900}
    assert open_sequences(data(source)).digest == GOLDEN


GOLDEN = "sha256:943bd8c7d53e0b8f0313eb2676afbf98d5b162f780bc13eabe0f5f68a8c5f37d"


@pytest.mark.parametrize("value", [0, 6, 2.5, None, float("nan"), "good"])
def test_a_rating_that_is_no_number_of_stars_is_refused(tmp_path, value):
    rows = [(*row[:4], row[4] if not isinstance(value, str) else str(row[4])) for row in ROWS]
    path = written(tmp_path / "log.parquet", [*rows[:-1], (*rows[-1][:4], value)])
    message = (
        r"'rating' is data.source.columns.rating, so every row must hold a whole number from 1 to "
        rf"5, found {value!r}; leave such rows out"
    )
    with pytest.raises(ConfigError, match=message):
        open_sequences(data(described(path, rating="rating")))


def test_a_missing_column_of_ratings_is_named(tmp_path):
    path = written(tmp_path / "log.parquet")
    with pytest.raises(ConfigError, match="has no column 'ratings'.*the nearest is 'rating'"):
        open_sequences(data(described(path, rating="ratings")))


def test_movielens_100k_is_read_from_its_two_tables(tmp_path, monkeypatch):
    folder = tmp_path / "movielens_100k"
    folder.mkdir()
    titles = {1: "Toy Story (1995)", 2: "Heat (1995)", 3: "Casino (1995)"}
    pq.write_table(
        pa.table({"item_id": list(titles), "title": list(titles.values())}),
        folder / "items.parquet",
    )
    rows = {
        "user_id": pa.array([7, 7, 7, 8, 8, 8], pa.int16()),
        "item_id": pa.array([2, 1, 3, 3, 2, 1], pa.int16()),
        "rating": pa.array([5, 3, 1, 2, 4, 4], pa.uint8()),
        "timestamp": pa.array([20, 10, 30, 3, 2, 1], pa.int32()),
    }
    pq.write_table(pa.table(rows), folder / "ratings.parquet")
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    found = open_sequences(data("movielens_100k"))
    shown = {
        user: [(found.titles[i], int(r)) for i, r in zip(items, given, strict=True)]
        for user, items, given in zip(found.users, found.histories, found.ratings, strict=True)
    }
    toy, heat, casino = titles.values()
    assert shown == {
        "7": [(toy, 3), (heat, 5), (casino, 1)],
        "8": [(toy, 4), (heat, 4), (casino, 2)],
    }


def test_simulated_stars_follow_what_is_liked():
    source = data({"type": "simulate", "users": 300, "items": 80, "rows": 9000, "ratings": True})
    found, plain = (
        open_sequences(data(source.source.to_dict() | {"ratings": ratings}))
        for ratings in (True, False)
    )
    assert [h.tolist() for h in found.histories] == [h.tolist() for h in plain.histories]
    shares = np.bincount(np.concatenate(found.ratings), minlength=6)[1:] / found.counts["events"]
    assert (shares > 0.02).all()
    world = World(source.source)
    rows = world.chunk(0)
    user, item, p_click, p_like = (
        rows[name].to_numpy() for name in ("user_id", "video_id", "p_click", "p_like")
    )
    given = stars(0, user, item, p_click, p_like)
    by_stars = [float(np.mean((p_like / p_click)[given == star])) for star in (1, 2, 3, 4, 5)]
    assert by_stars == sorted(by_stars)
