"""An empty split is told before Ray starts, by the rows of a small log and the range of a long one."""

import contextlib
import contextvars
from pathlib import Path

import pyarrow as pa
import pytest

from infnet.config import InfnetConfig
from infnet.data import empty_split
from infnet.data.prepare import open_reader, prepare
from infnet.train.run import train
from rayrun import storage
from rayrun.config import ConfigError, load
from tests.infnet.data import logs
from tests.infnet.data.shards import SPLITS

SMOKE = Path(__file__).parents[3] / "configs" / "infnet" / "smoke.yaml"
WHOLE = "the log goes from 2020-09-13 12:26:40 UTC to 2020-09-23 10:26:40 UTC; move the cuts"


def by_time(valid_from: str, test_from: str, **more: str) -> dict[str, str]:
    return {"type": "time", "valid_from": valid_from, "test_from": test_from, **more}


@pytest.fixture
def log(tmp_path):
    return logs.write(tmp_path / "log", logs.table(), 100)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (by_time("2031-01-01", "2032-01-01"), r"valid and test empty: train 600 rows \(2020-09-13"),
        (by_time("2001-01-01", "2020-09-20"), "train empty: train 0 rows; valid 371 rows"),
        (by_time("2020-09-20", "2020-09-20T00:00:01"), "valid empty: train 371 rows"),
        ({"type": "hash", "column": "iid", "valid": 1e-9, "test": 0.2}, "valid empty: train 525"),
    ],
)
def test_a_small_log_is_judged_by_its_rows(log, split, says):
    reader = open_reader(logs.config(log, split=split))
    with pytest.raises(ConfigError, match=rf"data\.split leaves {says}.*; {WHOLE}"):
        empty_split.refuse_early(reader)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (by_time("2031-01-01", "2032-01-01"), f"valid and test empty: no row is there, .*{WHOLE}"),
        (
            by_time("2001-01-01", "2020-09-20"),
            "train empty: no row is there, ts goes from 16000000",
        ),
        (by_time("91", "99", column="price"), "valid and test empty: no row is there, price goes"),
    ],
)
def test_a_long_log_is_judged_by_the_range_of_the_column(log, split, says, monkeypatch):
    monkeypatch.setattr(empty_split, "QUICK_ROWS", 0)
    reader = open_reader(logs.config(log, split=split))
    with pytest.raises(ConfigError, match=rf"data\.split leaves {says}"):
        empty_split.refuse_early(reader)


@pytest.mark.parametrize("rows", [0, 1000])
def test_what_is_not_known_to_be_empty_is_not_refused(log, rows, monkeypatch):
    monkeypatch.setattr(empty_split, "QUICK_ROWS", rows)
    empty_split.refuse_early(open_reader(logs.config(log)))
    if not rows:  # valid is empty, which a range does not tell
        narrow = by_time("2020-09-20", "2020-09-20T00:00:01")
        empty_split.refuse_early(open_reader(logs.config(log, split=narrow)))


def test_a_log_with_rows_of_no_split_is_judged_with_its_bad_rows(tmp_path):
    rows = logs.table()
    rows = rows.append_column("part", pa.array(["train"] * 599 + ["trian"]))
    split = {"type": "column", "column": "part"}
    log = logs.write(tmp_path / "log", rows)
    empty_split.refuse_early(open_reader(logs.config(log, split=split)))


@pytest.mark.parametrize("there", SPLITS)
def test_of_splits_that_a_column_says_only_test_may_have_no_rows_yet(tmp_path, there):
    rows = logs.table().append_column("part", pa.array([there, "train", "valid"] * 200))
    config = logs.config(
        logs.write(tmp_path / "log", rows), split={"type": "column", "column": "part"}
    )
    empty_split.refuse_early(open_reader(config))
    only = rows.set_column(rows.column_names.index("part"), "part", pa.array([there] * 600))
    logs.write(tmp_path / "log", only)
    missing = " and ".join(name for name in ("train", "valid") if name != there)
    with pytest.raises(ConfigError, match=f"leaves {missing} empty"):
        empty_split.refuse_early(open_reader(config))


def test_the_simulator_says_which_days_it_makes():
    sets = ["data.source.rows=9000000", "data.split.test_from=2023-01-01"]
    late = load(InfnetConfig, SMOKE, sets)
    with pytest.raises(ConfigError, match="leaves test empty: .* to 2022-04-21 23:59:59 UTC"):
        empty_split.refuse_early(open_reader(late))


@pytest.mark.parametrize("verb", [prepare, train])
def test_it_is_refused_before_anything_is_done(log, verb, tmp_path):
    out = str(tmp_path / "out")
    config = logs.config(log, split=by_time("2031-01-01", "2032-01-01"))
    with contextlib.ExitStack() as held:
        if verb is prepare:  # held by another run: what comes after the check would say so
            contextvars.Context().run(held.enter_context, storage.claim(out))
        with pytest.raises(ConfigError, match="leaves valid and test empty"):
            verb(config, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]
