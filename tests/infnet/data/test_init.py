"""`infnet init`: what it guesses from a log loads, and says what it left out."""

import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.config import HashSplit, InfnetConfig, TimeSplit
from infnet.data.init import init, init_verb
from infnet.features import CategoricalFeature, NumericFeature, SequenceFeature
from infnet.tasks import BinaryTask, RegressionTask, ZilnTask
from rayrun.config import ConfigError, load
from rayrun.data.simulate import SimulatedLog
from rayrun.data.world import SimulateSource


def started(path, tmp_path):
    text = init(str(path), str(tmp_path / "draft.yaml"))
    return load(InfnetConfig, tmp_path / "draft.yaml"), text


def shop(path, delimiter=",", encoding="utf-8"):
    """A small log of five columns."""
    random = np.random.default_rng(0)
    lines = [delimiter.join(["customer_id", "product_id", "timestamp", "price", "bought"])]
    for at in range(2_000):
        user, item = random.integers(40), random.integers(90)
        price, bought = round(random.gamma(2, 20), 2), int(random.random() < 0.2)
        values = [user, f"p{item}é", 1_700_000_000 + at * 500, price, bought]
        lines.append(delimiter.join(str(v) for v in values))
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def test_roles_types_and_split_of_a_small_log_are_guessed(tmp_path):
    config, text = started(shop(tmp_path / "shop.csv"), tmp_path)
    roles = config.data.source.columns
    assert roles.names() == {"user": "customer_id", "item": "product_id", "time": "timestamp"}
    assert roles.time.unit == "s"
    assert isinstance(config.tasks["bought"], BinaryTask)
    assert isinstance(config.features["product_id"], CategoricalFeature)
    assert isinstance(config.features["price"], NumericFeature)
    assert isinstance(config.features["past_bought"], SequenceFeature)
    assert isinstance(config.data.split, TimeSplit)
    assert "bought" not in config.features
    assert "# ?" in text


@pytest.mark.parametrize(("delimiter", "encoding"), [(";", "utf-8"), ("\t", "latin-1")])
def test_delimiter_and_encoding_are_seen(tmp_path, delimiter, encoding):
    config, _ = started(shop(tmp_path / "shop.csv", delimiter, encoding), tmp_path)
    text = config.data.source.text
    assert (text.delimiter, text.encoding) == (delimiter, encoding)


def test_what_no_model_may_see_is_left_out(tmp_path):
    log = SimulatedLog(SimulateSource(rows=3_000, users=50, items=60))
    rows = next(log.read(log.fragments()[0])).drop_columns(["__row_id", "__bad"])
    pq.write_table(rows, tmp_path / "log.parquet")
    config, text = started(tmp_path / "log.parquet", tmp_path)
    assert not any(name.startswith(("p_", "e_")) for name in config.features)
    assert "left out: p_click: looks like a prediction of a label" in text
    assert {"click", "long_view", "like"} <= set(config.tasks)
    assert isinstance(config.tasks["play_time_ms"], RegressionTask)


def test_amounts_lists_calendars_and_free_text_are_told_apart(tmp_path):
    n = 400
    random = np.random.default_rng(1)
    table = pa.table(
        {
            "date": np.repeat([20220408, 20220409], n // 2),
            "spend": np.where(random.random(n) < 0.9, 0.0, random.gamma(2, 30, n)),
            "note": [f"text {i}" for i in range(n)],
            "rating": random.integers(1, 6, n),
            "history": [[1, 2]] * n,
            "one": np.ones(n),
            "7 odd.name": random.random(n),
            "item_id": random.integers(0, 30, n),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    config, text = started(tmp_path / "a.parquet", tmp_path)
    assert isinstance(config.tasks["spend"], ZilnTask)
    assert config.tasks["rating"].source.above == 3
    assert set(config.features) == {"history", "f_7_odd_name", "item_id"}
    assert isinstance(config.data.split, HashSplit)
    for left in ("date: a time", "note: free text", "one: has one value"):
        assert f"left out: {left}" in text


def test_a_log_without_a_label_is_explained(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,x\n1,2.5\n2,3.5\n")
    with pytest.raises(
        ConfigError, match=r"no column looks like a label.*numbers found: user_id, x"
    ):
        init(str(tmp_path / "a.csv"), str(tmp_path / "a.yaml"))
    assert not (tmp_path / "a.yaml").exists()


def test_a_log_of_labels_alone_is_explained(tmp_path):
    (tmp_path / "a.csv").write_text("click\n" + "0\n1\n" * 5)
    with pytest.raises(ConfigError, match="no column can be a feature"):
        init(str(tmp_path / "a.csv"), str(tmp_path / "a.yaml"))


def test_the_verb_names_its_file_and_replaces_none(tmp_path):
    shop(tmp_path / "shop.csv")
    message = init_verb(str(tmp_path), str(tmp_path / "shop.csv"))
    assert (tmp_path / "shop.yaml").exists()
    assert "infnet train" in message
    with pytest.raises(ConfigError, match=r"shop\.yaml is there already"):
        init_verb(str(tmp_path), str(tmp_path / "shop.csv"))


DATA = os.environ.get("INFNET_DATA", "")
SAMPLES = (
    sorted(
        str(p)
        for name in (
            "tiny_samples",
            "hillstrom_convert_spend",
            "kuairand27k_explicit",
            "movielens_1m_collm",
        )
        for p in pathlib.Path(DATA, name).glob("*.parquet")
        if p.stem not in ("items", "user_features")
    )
    if DATA
    else []
)


@pytest.mark.skipif(not SAMPLES, reason="INFNET_DATA is not set")
@pytest.mark.parametrize("path", SAMPLES)
def test_drafts_of_public_samples_load(tmp_path, path):
    config, _ = started(path, tmp_path)
    assert config.tasks
    assert not set(config.features) & set(config.tasks)


def test_columns_without_a_name_or_with_like_names_make_a_valid_draft(tmp_path):
    lines = shop(tmp_path / "shop.csv").read_text(encoding="utf-8").splitlines()
    rows = [f"{at},{line},{at % 7},{at % 9 / 9}" for at, line in enumerate(lines[1:])]
    path = tmp_path / "frame.csv"  # as pandas writes it with its index
    path.write_text("\n".join([f",{lines[0]},a b,a_b", *rows]), encoding="utf-8")
    config, text = started(path, tmp_path)
    assert (config.features["a_b"].column, config.features["a_b_2"].column) == ("a b", "a_b")
    assert "# left out: a column without a name (an index?)" in text


def test_a_label_under_two_names_makes_two_tasks(tmp_path):
    rows = [f"{at % 30},{int(at % 3 == 0)},{int(at % 5 == 0)}" for at in range(400)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["uid,like,is_like", *rows]), encoding="utf-8")
    config, _ = started(path, tmp_path)
    labels = {name: task.source.column for name, task in config.tasks.items()}
    assert labels == {"like": "like", "like_2": "is_like"}
    assert config.features["uid_like_2_rate"].task == "like_2"


def test_a_long_log_is_cut_by_all_its_times(tmp_path, monkeypatch):
    monkeypatch.setattr("infnet.data.survey.TIME_ROWS", 300)
    config, _ = started(shop(tmp_path / "shop.csv"), tmp_path)
    day = 86_400  # 2,000 rows, 500 s apart: 80 % and 90 % lie 9.3 and 10.4 days after the first
    first = 1_700_000_000
    split = config.data.split
    assert split.valid_from == str(np.datetime64((first + 800_000) // day * day, "s"))[:10]
    assert split.test_from == str(np.datetime64((first + 900_000) // day * day, "s"))[:10]
