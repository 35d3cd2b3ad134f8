"""The records and the report of a pipeline run, also of one that broke off."""

import json
import re

import pytest

from rayrun import manifest
from rayrun.config import Config
from rayrun.metrics import Result
from rayrun.run_record import BROKEN_OFF, events_in, read_steps
from rayrun.run_report import write_report

NAMES = ["prepare", "train", "gate", "export"]


def event(step, state, line="", seconds=0.0, uri="", code=None):
    return {"time": 1.0, "step": step, "state": state, "line": line, "seconds": seconds, "uri": uri, "exit_code": code}  # fmt: skip


def stored(place, metrics=None, baselines=None, details=None):
    place.mkdir(parents=True)
    Result.of(
        "train", Config(), started=0, split="test", rows=1234,
        metrics=metrics or {}, baselines=baselines or {}, details=details or {},
    ).write(place)  # fmt: skip
    (place / "report.html").write_text("")
    return str(place)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "root" / "runs" / "r1"
    folder.mkdir(parents=True)
    return folder


def write(run, *events):
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def test_events_make_the_steps(run):
    write(
        run,
        event("prepare", "running", "reading"),
        event("prepare", "cached", uri="/s/p", seconds=1.5, code=0),
        event("train", "running", "loss 1"),
        event("train", "running", "loss 0.5"),
    )
    with (run / "events.jsonl").open("a") as stream:
        stream.write('{"step": "gate", "sta')  # cut off by a kill
    steps = read_steps(run, NAMES)
    assert [(s.name, s.state) for s in steps.values()] == [
        ("prepare", "cached"),
        ("train", "failed"),  # it ended without a word
        ("gate", "skipped"),
        ("export", "skipped"),
    ]
    assert steps["train"].line == "loss 0.5"
    assert (steps["prepare"].seconds, steps["prepare"].uri) == (1.5, "/s/p")


def test_steps_that_share_no_file_system_left_one_file_each(bucket):
    from rayrun import storage

    run = f"{bucket}/runs/r1"
    last = json.dumps(event("train", "failed", "killed", code=137)) + "\n"
    storage.write_bytes(f"{run}/steps/train.json", last.encode())
    steps = read_steps(run, NAMES)
    assert (steps["train"].state, steps["train"].exit_code) == ("failed", 137)
    assert steps["gate"].state == "skipped"
    write_report(run, "p", NAMES)
    assert json.loads(storage.read_bytes(f"{run}/status.json"))["state"] == "failed"


def test_a_step_that_said_nothing_at_all(run):
    write(run, event("train", "running"))
    assert read_steps(run, NAMES)["train"].line == BROKEN_OFF


def test_events_in_leaves_out_what_is_no_event():
    assert events_in('[1]\n{"a": 1}\n\n{"step": "x"}\nrubbish') == [{"step": "x"}]


def test_the_report_links_the_steps_and_shows_what_they_found(run):
    root = run.parents[1]
    trained = stored(
        root / "store/train/1",
        {"click": {"auc": 0.75, "logloss": 0.4}},
        {
            "floor": {"click": {"auc": 0.5}},
            "random_0": {"click": {"auc": 0.25}},
            "random_1": {"click": {"auc": 0.75}},
            "random_2": {"click": {"auc": None}},
        },
    )
    blocked = stored(
        root / "store/gate/2", details={"decision": "blocked", "reason": "click is worse"}
    )
    write(
        run,
        event("prepare", "done", uri=str(root / "store/gone"), seconds=3, code=0),
        event("train", "cached", uri=trained, seconds=61.23, code=0),
        event("gate", "done", uri=blocked, seconds=2, code=0),
    )
    answer = {
        "user": "a user",
        "candidates": 7,
        "milliseconds": 1.25,
        "top": [{"video_id": 4, "click": 0.5}],
    }
    page = write_report(run, "recommender", NAMES, backend_state="SUCCEEDED", answers=[answer])
    assert page == (run / "report.html").read_text()
    assert '<a href="../../store/train/1/report.html">train</a></td><td>cached</td>' in page
    assert "61.2" in page
    assert "1,234" in page
    assert "click auc 0.7500" in page
    words = re.sub(r"<[^>]+>|\s+", " ", page)
    assert re.search(r"model +0\.7500 +floor +0\.5000 +random \(mean of 3\) +0\.5000", words)
    assert "The gate blocked the new model:</strong> click is worse" in page
    assert "the best 1 of 7 candidates, answered in 1.2 ms" in page
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["backend_state"]) == ("succeeded", "SUCCEEDED")
    assert {n: s["state"] for n, s in status["steps"].items()} == {
        "prepare": "done", "train": "cached", "gate": "done", "export": "skipped",
    }  # fmt: skip


def difference(task, value, interval, clear):
    return {"model": "without", "task": task, "metric": "auc", "mean": 0.7,
            "difference": {"value": value, "interval": interval, "clear": clear}}  # fmt: skip


def test_branches_applications_and_gains_stand_in_the_report_and_outlast_its_second_writing(run):
    root = run.parents[1]
    found = {
        "differences": [
            difference("click", -0.02, [-0.03, -0.01], True),
            difference("like", 0.01, [-0.02, 0.04], False),
        ]
    }
    metrics = {"click": {"auc": 0.72}, "like": {"auc": 0.69}}
    judged = stored(root / "judged", metrics, {"without": metrics}, found)
    url = "http://127.0.0.1:8000/scorer"
    live = stored(
        root / "live", details={"url": url, "application": "scorer", "model": "sha256:ab"}
    )
    kept = stored(root / "kept", details={"kept": [0, 5, 11]})
    write(
        run,
        event("export", "done", uri=live, code=0),
        event("train", "done", uri=judged, code=0),
        event("prepare", "done", uri=kept, code=0),
    )
    branches = {"Later": ["gate"], "First": ["prepare", "train", "export"]}
    write_report(run, "p", NAMES, branches=branches)
    said = {"application": "scorer", "url": url, "user": "a user", "candidates": 7}
    answer = {**said, "milliseconds": 1.25, "top": [{"video_id": 4}]}
    page = write_report(run, "p", NAMES, answers=[answer, {**answer, "application": "other"}])
    assert page.index('<h2 id="first">') < page.index('<h2 id="later">')
    assert "<p>Not run: gate.</p>" in page
    assert f'<a href="{url}/docs">{url}</a></td><td>ab</td>' in page
    assert "layers 0 5 11" in page
    assert "+0.0200</td><td>[+0.0100, +0.0300]</td><td>better</td>" in page
    assert "−0.0100</td><td>[−0.0400, +0.0200]</td><td>not told apart</td>" in page
    for name in ("scorer", "other"):
        assert f"{name} at {url}</h3>" in page


def test_a_failure_and_an_interruption_are_told(run):
    write(run, event("train", "failed", "bad input: `rows` <b>", seconds=1, code=2))
    page = write_report(run, "p", NAMES)
    assert "<strong>train failed (exit code 2):</strong>" in page
    assert "&lt;b&gt;" in page
    write(run, event("train", "failed", "interrupted", seconds=1, code=130))
    page = write_report(run, "p", NAMES, interrupted=True, notes=["`a` was taken down"])
    assert "<code>a</code> was taken down" in page
    assert "train failed" not in page
    assert "<td>train</td><td>interrupted</td>" in page
    assert "p: interrupted" in page
    assert "the same command goes on where it stopped" in page


def test_a_moved_root_keeps_its_links(run, tmp_path):
    trained = stored(run.parents[1] / "store/train/1")
    write(run, event("train", "done", uri=trained, code=0))
    write_report(run, "p", NAMES)
    run.parents[1].rename(tmp_path / "moved")
    page = (tmp_path / "moved/runs/r1/report.html").read_text()
    assert 'href="../../store/train/1/report.html"' in page
    assert str(tmp_path) not in page


def test_outputs_of_kfp_are_filled_from_the_result(tmp_path):
    from kfp.dsl import HTML, Metrics, Model

    from rayrun.kfp_outputs import fill
    from rayrun.step import StepResult

    place = tmp_path / "out"
    stored(place, {"click": {"auc": 0.75, "gini": None}})
    written = manifest.write(place, kind="x.run", format_version=1, config=Config())
    done = StepResult(str(place), "sha256:k", "sha256:d", True, Result.read(place))
    model = Model(name="model", uri="elsewhere")
    metrics = Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    report = HTML(name="report", uri=str(tmp_path / "page.html"))
    fill(done, model, metrics=metrics, report=report)
    assert model.uri == str(place)
    assert model.metadata == {
        "key": "sha256:k", "digest": "sha256:d", "cached": True,
        "config_digest": written.config_digest, "rows": 1234,
        "kind": "x.run", "created": written.created, "git_commit": written.git_commit,
    }  # fmt: skip
    assert metrics.metadata == {"metrics.click.auc": 0.75}
    assert (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("backend", "state"),
    [
        ("SUCCEEDED", "succeeded"),
        ("", "succeeded"),
        ("FAILED", "failed"),
        ("RUNNING", "interrupted"),
    ],
)
def test_without_a_record_of_the_step_that_ended_the_backend_is_asked(run, backend, state):
    write(run, event("prepare", "done", code=0))
    write_report(run, "p", NAMES, backend_state=backend)
    assert json.loads((run / "status.json").read_text())["state"] == state
