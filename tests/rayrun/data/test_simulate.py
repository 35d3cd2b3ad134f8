"""The simulator: what is planted can be found, and only so much of it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rayrun.config import ConfigError, validate
from rayrun.data import simulate
from rayrun.data.log import BAD, ROW_ID
from rayrun.data.simulate import SimulatedLog, best_auc, catalogue
from rayrun.data.world import DAY_MS, DAYS, SCHEMA, START_MS, TASKS, SimulateSource, World


def make(**settings):
    return validate(SimulateSource, settings, where="test")


@pytest.fixture(scope="module")
def table():
    return read(make())


def read(source):
    log = SimulatedLog(source)
    return pa.concat_tables(t for f in log.fragments() for t in log.read(f))


def test_rows_are_where_their_ids_say(table):
    assert table.num_rows == 60_000
    np.testing.assert_array_equal(table[ROW_ID].to_numpy(), np.arange(60_000))
    assert table[BAD].null_count == 60_000


def test_times_are_in_order_inside_the_fortnight_with_ties(table):
    time = table["time_ms"].to_numpy()
    assert (np.diff(time) >= 0).all()
    assert time[0] > START_MS
    assert time[-1] < START_MS + DAYS * DAY_MS
    pairs = np.unique(np.c_[table["user_id"].to_numpy(), time], axis=0)
    assert 0.05 < 1 - len(pairs) / len(time) < 0.3


def test_a_chunk_is_the_same_whoever_makes_it():
    one, other = World(make(rows=40_000)), World(make(rows=40_000))
    other.chunk(0)
    assert one.chunk(1).equals(other.chunk(1))
    assert not one.chunk(1).equals(World(make(rows=40_000, seed=1)).chunk(1))


def test_columns_read_alone_are_those_of_the_whole(table):
    log = SimulatedLog(make())
    part = next(log.read(log.fragments()[1], ["p_like", "user_id"]))
    assert part.column_names == ["p_like", "user_id", ROW_ID, BAD]
    assert part["p_like"].equals(table["p_like"].slice(16_384, part.num_rows))


@pytest.mark.parametrize("task", list(TASKS))
def test_true_probabilities_are_calibrated(table, task):
    p = table[f"p_{task}"].to_numpy()
    y = table[TASKS[task]].to_numpy()
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        here = (p >= low) & (p < high)
        error = np.sqrt((p[here] * (1 - p[here])).mean() / here.sum())
        assert abs(y[here].mean() - p[here].mean()) < 4 * error


def test_expected_play_time_is_its_mean(table):
    seen, expected = (table[c].to_numpy().astype(float) for c in ("play_time_ms", "e_play_time_ms"))
    error = (seen - expected).std() / np.sqrt(len(seen))
    assert abs(seen.mean() - expected.mean() + 0.5) < 4 * error


def test_signals_follow_from_play_time_as_in_kuairand(table):
    play = table["play_time_ms"].to_numpy()
    np.testing.assert_array_equal(table["is_click"].to_numpy() == 1, play >= 7_000)
    np.testing.assert_array_equal(table["long_view"].to_numpy() == 1, play >= 18_000)


def test_the_best_auc_is_far_above_means_and_below_one(table):
    best = best_auc(table)
    assert all(0.75 <= best[task] <= 0.86 for task in TASKS)
    train = table["time_ms"].to_numpy() < START_MS + 11 * DAY_MS
    for task, label in TASKS.items():
        y = table[label].to_numpy().astype(float)
        logits = 0.0
        for key in ("user_id", "video_id"):
            ids = table[key].to_numpy()
            count = np.bincount(ids[train], minlength=2_000)
            total = np.bincount(ids[train], y[train], minlength=2_000)
            mean = (total + 5 * y[train].mean()) / (count + 5)
            logits = logits + np.log(mean / (1 - mean))[ids]
        floor = simulate.auc(logits[~train], y[~train])
        truth = simulate.auc(table[f"p_{task}"].to_numpy()[~train], y[~train])
        assert 0.57 < floor < 0.70
        assert truth - floor > 0.12


def test_interactions_and_drift_are_what_means_do_not_get(table):
    world = World(make())
    user, time = table["user_id"].to_numpy(), table["time_ms"].to_numpy()
    wanted = world.interest(user, time) == table["topic"].to_numpy()
    click = table["is_click"].to_numpy()
    assert click[wanted].mean() - click[~wanted].mean() > 0.12
    first, last = (
        world.interest(np.arange(1500), np.full(1500, t)) for t in (START_MS, int(time[-1]))
    )
    assert 0.5 < (first != last).mean() <= 1


def test_popularity_and_activity_have_heavy_tails_and_a_uniform_slice(table):
    for key in ("user_id", "video_id"):
        counts = np.sort(np.bincount(table[key].to_numpy()))[::-1]
        assert counts[0] > 10 * np.median(counts)
    uniform = table.filter(pa.compute.equal(table["is_random"], 1))
    assert 0.045 < uniform.num_rows / 60_000 < 0.055
    assert np.bincount(uniform["video_id"].to_numpy()).max() < 15


def test_skew_puts_its_share_of_the_rows_on_one_user():
    users = read(make(rows=20_000, skew=0.5))["user_id"].to_numpy()
    assert 0.48 < np.bincount(users).max() / len(users) < 0.54


def test_the_catalogue_has_unique_titles_in_two_languages():
    items = catalogue(make(items=5_000))
    assert len(set(items["title"].to_pylist())) == len(set(items["title_zh"].to_pylist())) == 5_000
    assert catalogue(make(items=5_000), 4_990, 100).equals(items.slice(4_990))


def test_hundreds_of_millions_of_rows_cost_no_memory_to_list():
    log = SimulatedLog(make(rows=300_000_000, users=7_000_000, items=1_000))
    fragments = log.fragments()
    assert sum(f.rows for f in fragments) == 300_000_000
    last = list(log.read(fragments[-1]))[-1]
    assert last[ROW_ID][-1].as_py() == 299_999_999


def test_features_may_not_read_the_answer():
    log = SimulatedLog(make())
    with pytest.raises(
        ConfigError, match=r"features\.x must not read 'p_click': it holds the answer"
    ):
        log.require(["p_click"], "features.x")
    with pytest.raises(
        ConfigError, match="no column 'topics', which read needs; the nearest is 'topic'"
    ):
        next(log.read(log.fragments()[0], ["topics"]))


def test_the_best_auc_of_other_rows_is_refused():
    with pytest.raises(ConfigError, match="needs the column 'is_click' of simulated rows"):
        best_auc(pa.table({"a": [1]}))


def test_auc_counts_ties_half():
    assert simulate.auc([1, 2, 2, 3], [0, 0, 1, 1]) == 0.875
    assert np.isnan(simulate.auc([1, 2], [1, 1]))


@pytest.fixture(scope="module")
def open_ray(tmp_path_factory):
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("open_ray")
def test_written_in_parallel_it_is_the_log_that_is_read(tmp_path):
    source = make(rows=50_000, items=300)
    summary = simulate.write(source, str(tmp_path / "out"))
    assert summary["rows"] == 50_000
    files = sorted((tmp_path / "out" / "log").glob("*.parquet"))
    assert len(files) == 4
    written = pa.concat_tables(pq.read_table(f) for f in files)
    assert written.schema.names == SCHEMA.names
    assert written.equals(read(source).drop_columns([ROW_ID, BAD]).cast(written.schema))
    assert pq.read_table(tmp_path / "out" / "videos").num_rows == 300
    assert json.loads((tmp_path / "out" / "source.json").read_text())["rows"] == 50_000


def test_the_command_line_refuses_what_the_config_refuses(capsys, tmp_path):
    assert simulate.main(["--rows", "10", "--items", "1", "--out", str(tmp_path)]) == 2
    assert "items" in capsys.readouterr().err
