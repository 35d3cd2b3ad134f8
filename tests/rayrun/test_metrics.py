import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rayrun import metrics
from rayrun.config import Config, ConfigError
from rayrun.metrics import MetricLog, Record, Result, read_records
from rayrun.sinks import MlflowSink, TensorboardSink


class Run(Config):
    name: str = "a"


def log(path, *steps, **options):
    with MetricLog(path, **options) as out:
        for step in steps:
            out.write(step=step, split="train", task="click", name="loss", value=step / 10)


# --- The log ---------------------------------------------------------------------------------


def test_a_record_is_one_line_of_json(tmp_path):
    log(tmp_path / "deep/metrics.jsonl", 1)
    line = (tmp_path / "deep/metrics.jsonl").read_text()
    assert json.loads(line) == {
        "step": 1,
        "split": "train",
        "task": "click",
        "name": "loss",
        "value": 0.1,
    }
    assert read_records(tmp_path / "deep/metrics.jsonl") == [
        Record(step=1, split="train", task="click", name="loss", value=0.1)
    ]


def test_a_metric_that_is_not_defined_is_null(tmp_path):
    with MetricLog(tmp_path / "m.jsonl") as out:
        out.write_all(3, "valid", {"click": {"auc": None, "logloss": 0.5}})
    assert [(r.name, r.value, r.step) for r in read_records(tmp_path / "m.jsonl")] == [
        ("auc", None, 3),
        ("logloss", 0.5, 3),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused(tmp_path, value):
    with (
        MetricLog(tmp_path / "m.jsonl") as out,
        pytest.raises(
            ValueError, match="metric 'loss' of task 'click' on train at step 7 must be finite"
        ),
    ):
        out.write(step=7, split="train", task="click", name="loss", value=value)


def test_numbers_of_numpy_and_torch_are_taken(tmp_path):
    import numpy as np
    import torch

    with MetricLog(tmp_path / "m.jsonl") as out:
        for value in (np.float32(0.5), torch.tensor(0.5), np.int64(1)):
            out.write(step=np.int64(1), split="train", task="", name="loss", value=value)
    assert [r.value for r in read_records(tmp_path / "m.jsonl")] == [0.5, 0.5, 1.0]


def test_a_second_log_goes_on_where_the_first_ended(tmp_path):
    path = tmp_path / "m.jsonl"
    log(path, 1, 2)
    log(path, 3)
    assert [r.step for r in read_records(path)] == [1, 2, 3]


def test_a_resumed_run_writes_the_steps_after_its_checkpoint_once(tmp_path):
    path = tmp_path / "m.jsonl"
    log(path, 1, 2, 3, 4)
    log(path, 3, 4, 5, resume_at=2)
    assert [r.step for r in read_records(path)] == [1, 2, 3, 4, 5]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    log(path, 1, 2)
    path.write_text(path.read_text()[:-20])
    assert [r.step for r in read_records(path)] == [1]
    log(path, 2)
    assert [r.step for r in read_records(path)] == [1, 2]


def test_a_killed_run_loses_no_record_that_was_written(tmp_path):
    code = f"""
import time
from pathlib import Path
from rayrun.metrics import MetricLog
log = MetricLog(Path({str(tmp_path / "m.jsonl")!r}))
for step in range(5):
    log.write(step=step, split="train", task="", name="loss", value=0.5)
print("written", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "written\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert [r.step for r in read_records(tmp_path / "m.jsonl")] == list(range(5))


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    log(path, 1)
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ConfigError, match=r"m.jsonl, line 1, is no metric record"):
        read_records(path)


# --- Sinks -----------------------------------------------------------------------------------


def test_mlflow_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # what Python does where it is missing
    with pytest.raises(
        ConfigError,
        match=r"sinks: type 'mlflow' needs a package that is not installed .*pip install 'infnet-ray\[mlflow\]'",
    ):
        MetricLog(tmp_path / "m.jsonl", (MlflowSink(),), run="a")


def test_tensorboard_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    sink = TensorboardSink(directory=str(tmp_path))
    with pytest.raises(
        ConfigError,
        match=r"sinks: type 'tensorboard' needs .*pip install 'infnet-ray\[tensorboard\]'",
    ):
        MetricLog(tmp_path / "m.jsonl", (sink,), run="a")


def test_mlflow_takes_the_records(tmp_path):
    import mlflow

    sink = MlflowSink(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with MetricLog(tmp_path / "m.jsonl", (sink,), run="a") as out:
        out.write(step=2, split="test", task="click", name="ndcg@5", value=0.5)
    client = mlflow.MlflowClient(tracking_uri=sink.tracking_uri)
    experiment = client.get_experiment_by_name("infnet-ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"test/click/ndcg_at_5": 0.5}
    assert run.info.status == "FINISHED"


def test_tensorboard_takes_the_records(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricLog(
        tmp_path / "m.jsonl", (TensorboardSink(directory=str(tmp_path / "tb")),), run="a"
    ) as out:
        out.write(step=2, split="test", task="click", name="auc", value=0.5)
    events = EventAccumulator(str(tmp_path / "tb/a"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/click/auc")] == [(2, 0.5)]


# --- The result ------------------------------------------------------------------------------


def test_a_result_has_the_keys_of_the_contract_and_is_read_back(tmp_path):
    started = time.monotonic() - 2.0
    result = Result.of(
        "evaluate",
        Run(),
        started=started,
        split="test",
        metrics={"click": {"auc": 0.75, "ne": None}},
        baselines={"floor": {"click": {"auc": 0.7}}},
        rows=10,
    )
    result.write(tmp_path / "out")
    raw = json.loads((tmp_path / "out/result.json").read_text())
    assert sorted(raw) == sorted(
        [
            "verb",
            "config_digest",
            "split",
            "metrics",
            "baselines",
            "wall_s",
            "peak_memory_bytes",
            "rows",
            "versions",
            "details",
        ]
    )
    assert raw["metrics"] == {"click": {"auc": 0.75, "ne": None}}
    assert raw["config_digest"] == Run().digest()
    assert 2.0 <= raw["wall_s"] < 20
    assert Result.read(tmp_path / "out") == result


def test_the_flat_form_joins_keys_by_dots_and_leaves_out_what_is_not_defined():
    result = Result.of(
        "evaluate",
        Run(),
        started=0,
        metrics={"click": {"auc": 0.75, "ne": None}},
        baselines={"floor": {"click": {"auc": 0.7}}},
    )
    assert result.flat() == {"metrics.click.auc": 0.75, "baselines.floor.click.auc": 0.7}


def test_the_peak_memory_is_that_of_the_process_in_bytes_unless_a_worker_had_more():
    block = bytearray(200 << 20)
    block[::4096] = b"1" * len(block[::4096])
    assert (200 << 20) < metrics.peak_memory() < (64 << 30)
    assert (
        Result.of("train", Run(), started=0, peak_memory_bytes=1 << 50).peak_memory_bytes == 1 << 50
    )


def test_a_missing_and_a_damaged_result_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"result.json: there is no such file"):
        Result.read(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ConfigError, match=r"result.json is damaged .*; run the verb again"):
        Result.read(tmp_path)
    (tmp_path / "result.json").write_text('{"verb": "x"}')
    with pytest.raises(ConfigError, match="wall_s: Field required"):
        Result.read(tmp_path)
