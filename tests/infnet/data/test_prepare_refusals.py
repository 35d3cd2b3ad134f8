"""What prepare refuses or sets aside, and what it leaves then: nothing."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.data import empty_split
from infnet.data.prepare import prepare
from rayrun import manifest, storage
from rayrun.config import ConfigError
from tests.infnet.data import logs
from tests.infnet.data.shards import everything

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def spoilt(tmp_path):
    rows = logs.table()
    click, users = rows["click"].to_numpy().copy(), rows["uid"].to_pylist()
    click[[3, 50]] = 7.0
    users[10] = None
    rows = rows.set_column(3, "click", pa.array(click)).set_column(0, "uid", pa.array(users))
    return logs.write(tmp_path / "log", rows, 40), tmp_path / "out"


def test_bad_rows_are_quarantined_with_their_reasons(spoilt):
    path, out = spoilt
    prepare(logs.config(path), str(out))
    bad = pa.concat_tables([pq.read_table(p) for p in sorted((out / "quarantine").glob("*"))])
    reasons = dict(zip(bad["__row_id"].to_pylist(), bad["__bad"].to_pylist(), strict=True))
    assert "outside 0 to 1" in reasons[3]
    assert reasons[50] == reasons[3]
    assert "uid" in reasons[10]
    assert (
        bad.filter(pa.array([r == 50 for r in bad["__row_id"].to_pylist()]))["watch"].null_count
        == 0
    )
    assert not {3, 10, 50} & set(everything(out)["row_id"].to_pylist())
    found = manifest.read(str(out), kind="infnet.dataset", format_version=1)
    assert sum(found.info["quarantine"].values()) == 3


def test_too_many_bad_rows_fail_with_reasons_and_examples(spoilt):
    path, out = spoilt
    with pytest.raises(ConfigError, match=r"3 of 600 rows \(0\.5%\) are bad, more than") as error:
        prepare(logs.config(path, max_bad_share=0.001), str(out))
    assert "2 rows: the label click" in str(error.value)
    assert "log.parquet, row 4: uid=" in str(error.value)
    assert "click=7.0" in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"type": "time", "valid_from": "2020-09-21", "test_from": "2020-09-20"},
            r"valid_from \(2020-09-21\) must be before test_from",
        ),
        (
            {"type": "time", "valid_from": "2020-09-20", "test_from": "2031-01-01"},
            r"leaves test empty",
        ),
        ({"type": "time", "valid_from": "soon", "test_from": "later"}, r"must be an ISO date"),
        ({"type": "column", "column": "fold"}, r"no column 'fold'"),
    ],
)
def test_a_split_that_cannot_be_is_refused_and_leaves_nothing(prepared, tmp_path, split, message):
    rows, _ = prepared
    config = logs.config(logs.write(tmp_path / "log", rows), split=split)
    with pytest.raises(ConfigError, match=message):
        prepare(config, str(tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]


def test_a_shard_of_the_raw_log_that_is_cut_off_is_named(prepared, tmp_path):
    rows, _ = prepared
    path = logs.write(tmp_path / "log", rows)
    config = logs.config(path)
    content = (path / "log.parquet").read_bytes()
    (path / "log.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"log\.parquet"):
        prepare(config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_log_damaged_in_the_middle_is_named_by_the_worker_that_reads_it(prepared, tmp_path):
    rows, _ = prepared
    path = logs.write(tmp_path / "log", rows)
    content = bytearray((path / "log.parquet").read_bytes())
    content[8:400] = bytes(392)
    (path / "log.parquet").write_bytes(content)
    with pytest.raises(ConfigError, match=r"log\.parquet"):
        prepare(logs.config(path), str(tmp_path / "out"))


def test_an_empty_log_is_refused(tmp_path):
    path = logs.write(tmp_path / "log", logs.table().slice(0, 0), 1)
    with pytest.raises(ConfigError, match=r"empty|no rows"):
        prepare(logs.config(path), str(tmp_path / "out"))


def test_a_directory_that_another_run_writes_is_refused(prepared, tmp_path):
    rows, _ = prepared
    config = logs.config(logs.write(tmp_path / "log", rows))
    code = (
        "import sys\nfrom rayrun import storage\n"
        f"with storage.claim({str(tmp_path / 'out')!r}):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == b"held"
    with pytest.raises(ConfigError, match=str(holder.pid)):
        prepare(config, str(tmp_path / "out"))
    holder.communicate()


def test_nothing_is_left_of_a_failed_run(prepared, tmp_path, monkeypatch):
    """The split is found to be empty when all rows have been read, as of a long log."""
    monkeypatch.setattr(empty_split, "QUICK_ROWS", 0)
    rows, _ = prepared
    config = logs.config(
        logs.write(tmp_path / "log", rows),
        split={"type": "time", "valid_from": "2020-09-20", "test_from": "2020-09-20T00:00:01"},
    )
    with pytest.raises(ConfigError, match=r"leaves valid empty: train 371 rows"):
        prepare(config, str(tmp_path / "out"))
    assert not storage.exists(str(tmp_path / "out"))
