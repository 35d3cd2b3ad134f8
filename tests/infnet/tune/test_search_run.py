"""`infnet tune`, stopped and continued: finished trials stay, one that is killed counts as failed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infnet.config import InfnetConfig
from infnet.tune.run import tune
from rayrun import manifest
from rayrun.config import ConfigError, load
from tests.infnet.train import written_dataset as written
from tests.leftovers import assert_none_left

SPACE = "{model.num_categorical_proxies: {type: choice, values: [1, 2, 3, 4]}}"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    place = tmp_path_factory.mktemp("search")
    data = written.dataset(place / "dataset")
    config = written.config(
        f"inputs.data={data}",
        "train.epochs=8",
        "tune={searcher: {type: grid}, scheduler: {type: none}, seeds: [0, 1]}",
        f"tune.space={SPACE}",
        "tune.objectives=[{type: metric}, {type: latency}, {type: parameters}]",
        "compute.object_store_bytes=200000000",
    )
    (place / "config.yaml").write_text(config.to_yaml())
    return place / "config.yaml"


def start(config: Path, out: Path, scratch: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "infnet.cli", "tune", str(config), "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def records(out: Path) -> dict[str, dict]:
    found = {}
    for path in (out / "search" / "trials").glob("*.json"):
        record = json.loads(path.read_text())  # it is replaced at once, never half-written
        found[record["id"]] = record
    return found


def wait_for(driver: subprocess.Popen, seen) -> None:
    until = time.monotonic() + 200
    while not seen():
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


def stop(driver: subprocess.Popen, number: int) -> None:
    """By Ctrl-C, which a terminal sends to the whole group, or by SIGKILL: nobody cleans up."""
    (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == (130 if number == signal.SIGINT else -number), errors
    if number == signal.SIGINT:
        assert "Traceback" not in errors
        assert "to go on, run again: infnet tune " in errors


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.whole)]
)
def test_a_stopped_search_goes_on_and_a_killed_trial_counts_as_failed(
    config, scratch, tmp_path, number
):
    out = tmp_path / "out"

    def in_state(state, since=0.0):
        found = [r for r in records(out).values() if r["started"] > since]
        return [r for r in found if r["state"] == state and (state != "running" or r["reports"])]

    first = start(config, out, scratch)
    try:
        wait_for(first, lambda: in_state("finished") and in_state("running"))
        stop(first, number)
    finally:
        first.kill()
        first.communicate()
    stopped_at = time.time()
    assert_none_left(scratch)
    kept = {r["id"]: r for r in in_state("finished")}
    assert 1 <= len(kept) < 4
    assert manifest.read_raw(out)["info"]["complete"] is False
    other = load(InfnetConfig, config, ["tune.seeds=[5]"])
    with pytest.raises(ConfigError, match=r"out holds another search .*choose another --out"):
        tune(other, str(out))

    second = start(config, out, scratch)
    try:
        wait_for(second, lambda: in_state("running", since=stopped_at))
        victim = in_state("running", since=stopped_at)[0]
        os.kill(victim["pid"], signal.SIGKILL)
        _, errors = second.communicate(timeout=200)
    finally:
        second.kill()
        second.communicate()
    assert second.returncode == 0, errors
    assert "Traceback" not in errors
    assert_none_left(scratch)

    result = json.loads((out / "result.json").read_text())
    details = result["details"]
    counts = {"total": 4, "finished": 3, "stopped": 0, "failed": 1, "repeated": 0}
    assert details["trials"] == counts
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    for name, record in kept.items():
        of = [row for row in rows if row["trial"] == name]
        assert [row["seed"] for row in of] == [0, 1]
        assert {row["pid"] for row in of} == {record["pid"]}  # of the driver that is no more
    (failed,) = [row for row in rows if row["state"] == "failed"]
    assert failed["trial"] == victim["id"]
    assert failed["error"]
    assert {row["model.num_categorical_proxies"] for row in rows} == {1, 2, 3, 4}

    chosen = json.loads((out / "best.json").read_text())
    best = load(InfnetConfig, out / "best.yaml")
    assert best == load(InfnetConfig, config, [*chosen["sets"], "inputs.data=''"])
    means = {p["trial"]: p["objectives"]["auc"] for p in details["points"]}
    assert means[chosen["trial"]] == max(means.values()) == chosen["objectives"]["auc"]
    assert result["metrics"]["click"]["auc"] > 0.5
    assert details["verdict"].startswith(f"The best auc is {max(means.values()):.4f} ± ")
    assert chosen["trial"] in details["pareto"]
    manifest.verify(out)
    assert manifest.read(out, kind="infnet.search", format_version=1).info["complete"]
    assert {path.name for path in out.iterdir()} == {
        "best.json", "best.yaml", "config.yaml", "manifest.json", "report.html", "result.json",
        "trials.parquet",
    }  # fmt: skip
    assert "Evaluations of the first seed" in (out / "report.html").read_text()
    assert tune(load(InfnetConfig, config), str(out)).metrics == result["metrics"]  # it stands
