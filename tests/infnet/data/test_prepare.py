"""From a raw log to shards: causal columns, whatever the cut of the log and the workers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.data.prepare import plan, prepare
from infnet.features.encoder import Encoder
from infnet.schema import Schema
from rayrun import manifest
from tests.infnet.data import brute_force, logs
from tests.infnet.data.shards import SPLITS, everything, shards

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def plain_rows(rows):
    """The raw rows as the brute-force twin wants them."""
    result = rows.to_pylist()
    for position, row in enumerate(result):
        row["__row_id"], row["__time"] = position, row["ts"]
        day = (row["ts"] - logs.START) / logs.DAY
        row["__split"] = 0 if day < 7 else 1 if day < 8 else 2
    return result


def assert_causal(rows, directory, *, rolling):
    """Histories and statistics of every prepared row are those of plain loops."""
    found = everything(directory)
    encoder = Encoder.read(Path(directory) / "encoder")
    plain = plain_rows(rows)
    items, users = encoder.vocabularies["item"], encoder.vocabularies["user"]
    for name, is_event, limit in (
        ("clicked", lambda r: r["click"] == 1, 6),
        ("seen", lambda r: True, 9),
    ):
        expected = brute_force.histories(
            plain, "uid", is_event, ("iid", "uid"), limit, rolling=rolling
        )
        assert found[f"s.{name}.ids.item"].to_pylist() == [
            items.ids(pa.array([e[0] for e in events], pa.string())).tolist() for events in expected
        ]
        ages = [
            [(row["ts"] - e[2]) / logs.DAY for e in events]
            for row, events in zip(plain, expected, strict=True)
        ]
        for got, wanted in zip(found[f"s.{name}.ages"].to_pylist(), ages, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
        if name == "seen":
            assert found["s.seen.ids.user"].to_pylist() == [
                users.ids(pa.array([str(e[1]) for e in events], pa.string())).tolist()
                for events in expected
            ]
    for name, key, value, fold in (
        ("user_click", "uid", "click", "earlier"),
        ("item_watch", "iid", "watch", "earlier"),
        ("item_like", "iid", "like", "leave_one_out"),
    ):
        expected = np.array(brute_force.statistics(plain, key, value, fold, rolling=rolling))
        count, total = expected[:, 0], expected[:, 1]
        np.testing.assert_allclose(found[f"d.{name}.count"], np.log1p(count), rtol=1e-6)
        prior = encoder.states[name]["prior"]
        mean = (total + 5.0 * prior) / (count + 5.0)
        np.testing.assert_allclose(found[f"d.{name}.mean"], mean, rtol=1e-6)


def test_frozen_histories_and_statistics_are_those_of_plain_loops(prepared):
    assert_causal(*prepared, rolling=False)


def test_rolling_rows_after_training_see_every_earlier_row(prepared, tmp_path):
    rows, frozen = prepared
    prepare(
        logs.config(logs.write(tmp_path / "log", rows), statistics="rolling"), str(tmp_path / "out")
    )
    assert_causal(rows, tmp_path / "out", rolling=True)
    assert shards(tmp_path / "out", "train").equals(shards(frozen, "train"))
    assert not shards(tmp_path / "out", "test").equals(shards(frozen, "test"))


def test_later_rows_change_nothing_in_earlier_ones(prepared, tmp_path):
    rows, out = prepared
    # every label of the test period is turned round
    click = rows["click"].to_numpy().copy()
    later = rows["ts"].to_numpy() >= logs.START + 8 * logs.DAY
    click[later] = 1 - click[later]
    changed = rows.set_column(rows.column_names.index("click"), "click", pa.array(click))
    prepare(logs.config(logs.write(tmp_path / "log", changed)), str(tmp_path / "out"))
    for split in ("train", "valid"):
        assert shards(tmp_path / "out", split).equals(shards(out, split))
    without = [n for n in shards(out, "test").column_names if n != "y.click"]
    assert (
        shards(tmp_path / "out", "test").select(without).equals(shards(out, "test").select(without))
    )


def digests(directory):
    found = manifest.read(str(directory), kind="infnet.dataset", format_version=1)
    return {n: f.sha256 for n, f in found.files.items() if n.startswith((*SPLITS, "encoder"))}


@pytest.mark.parametrize("group", [7, 100])
def test_other_fragments_and_blocks_make_the_same_files(prepared, tmp_path, group):
    rows, out = prepared
    prepare(logs.config(logs.write(tmp_path / "log", rows, group)), str(tmp_path / "out"))
    assert digests(tmp_path / "out") == digests(out)


def test_one_worker_and_two_make_the_same_files(prepared, tmp_path):
    rows, out = prepared
    path = logs.write(tmp_path / "log", rows, 50)
    code = (
        "from pathlib import Path\nfrom tests.infnet.data import logs\n"
        "from infnet.data.prepare import prepare\n"
        f"prepare(logs.config(Path({str(path)!r}), num_cpus=1), {str(tmp_path / 'out')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    assert digests(tmp_path / "out") == digests(out)


def test_the_look_ups_give_a_later_row_what_its_shard_holds(prepared):
    rows, out = prepared
    encoder = Encoder.read(out / "encoder")
    raw = rows.append_column("__row_id", pa.array(np.arange(rows.num_rows)))
    later = raw.filter(pa.array(rows["ts"].to_numpy() >= logs.START + 8 * logs.DAY))
    again = encoder.encode(encoder.derive(later))
    held = shards(out, "test")
    assert again.select(held.column_names).equals(held)


def test_training_rows_are_shuffled_and_the_others_are_in_the_order_of_the_log(prepared):
    _, out = prepared
    train = shards(out, "train")["row_id"].to_numpy()
    assert abs(np.corrcoef(train, np.arange(len(train)))[0, 1]) < 0.2
    for split in ("valid", "test"):
        rows = shards(out, split)["row_id"].to_numpy()
        assert (np.diff(rows) > 0).all()


def test_shards_have_the_rows_that_were_asked_for(prepared, tmp_path):
    rows, out = prepared
    path = logs.write(tmp_path / "log", rows, 50)
    prepare(logs.config(path, shard_rows=64), str(tmp_path / "out"))
    sizes = [
        pq.read_metadata(p).num_rows for p in sorted((tmp_path / "out" / "train").glob("*.parquet"))
    ]
    assert set(sizes[:-1]) == {64}
    for split in SPLITS:
        assert shards(tmp_path / "out", split).equals(shards(out, split))


def test_what_is_written_can_be_read_and_says_what_it_is(prepared):
    from infnet.data.loader import scan
    from rayrun.metrics import Result

    _, out = prepared
    manifest.verify(str(out))
    schema = Schema.read(out / "schema.json")
    assert schema.encoder_digest == Encoder.read(out / "encoder").digest
    result = Result.read(str(out))
    assert result.rows == 600
    assert result.metrics["dataset"]["rows_quarantined"] == 0
    train = shards(out, "train")
    assert result.metrics["click"]["mean_train"] == pytest.approx(
        np.mean(train["y.click"].to_numpy()), abs=1e-5
    )
    assert sum(len(b) for b in scan(str(out), "train", schema, 100)) == train.num_rows
    assert "quarantined" in (out / "report.html").read_text()


def test_a_hash_split_freezes_at_training_rows_too(tmp_path):
    rows = logs.table(400, seed=4)
    split = {"type": "hash", "column": "iid", "valid": 0.2, "test": 0.2}
    prepare(logs.config(logs.write(tmp_path / "log", rows), split=split), str(tmp_path / "out"))
    found = everything(tmp_path / "out")
    where = {
        row: code
        for code, s in enumerate(SPLITS)
        for row in shards(tmp_path / "out", s)["row_id"].to_pylist()
    }
    plain = rows.to_pylist()
    for position, row in enumerate(plain):
        row["__row_id"], row["__time"], row["__split"] = position, row["ts"], where[position]
    assert len({(r["iid"], r["__split"]) for r in plain}) == len({r["iid"] for r in plain})
    expected = brute_force.histories(plain, "uid", lambda r: True, ("iid",), 9)
    assert [len(h) for h in found["s.seen.ages"].to_pylist()] == [len(h) for h in expected]
    counts = brute_force.statistics(plain, "uid", "click", "earlier")
    np.testing.assert_allclose(
        found["d.user_click.count"], np.log1p([c for c, _ in counts]), rtol=1e-6
    )


def test_a_log_without_time_takes_leave_one_out_statistics(tmp_path):
    rows = logs.table(300, seed=2).append_column("part", pa.array([*SPLITS] * 100))
    features = {n: logs.FEATURES[n] for n in ("user", "item", "item_like")}
    config = logs.config(
        logs.write(tmp_path / "log", rows.drop_columns(["ts"])),
        features=features,
        columns={"user": "uid"},
        split={"type": "column", "column": "part"},
    )
    prepare(config, str(tmp_path / "out"))
    plain = rows.to_pylist()
    for position, row in enumerate(plain):
        row["__time"], row["__split"] = 0, position % 3
    expected = brute_force.statistics(plain, "iid", "like", "leave_one_out")
    found = everything(tmp_path / "out")
    np.testing.assert_allclose(
        found["d.item_like.count"], np.log1p([c for c, _ in expected]), rtol=1e-6
    )


def test_the_plan_names_columns_passes_and_split_and_reads_no_row(prepared, tmp_path):
    rows, _ = prepared
    text = plan(logs.config(logs.write(tmp_path / "log", rows)), str(tmp_path / "out"))
    assert "sorted pass by iid" in text
    assert "history clicked" in text
    assert "iid: string" in text
    assert not (tmp_path / "out").exists()
