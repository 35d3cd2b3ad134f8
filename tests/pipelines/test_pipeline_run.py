"""The pipeline `recommender`, run on this machine from a checkout of its own: what is made, what is
taken from the store, what happens when a step is refused, killed or interrupted.

One log, one store and few runs, in an order that tells a story: each test begins where the last
one ended.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from infnet.config import InfnetConfig
from pipelines.processes import below
from rayrun.config import load
from rayrun.data.source import open_source

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "infnet" / "smoke.yaml"
ROOMS = ("rayrun", "infnet", "layer_select", "components", "pipelines")
STEPS = ("prepare", "train", "evaluate", "gate", "export", "deploy")

SOURCE = """  source:
    path: log.csv
    columns: {user: user_id, item: video_id, time: {column: time_ms, unit: ms}}
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Place:
    """A checkout with a log and a configuration in it, and a root beside it."""

    checkout: Path
    root: Path
    scratch: str

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "pipelines", "run", "recommender", "config=run.yaml"]
        return subprocess.Popen(
            [*command, "--root", str(self.root), *arguments],
            cwd=self.checkout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": self.scratch},
            start_new_session=True,
        )

    def run(self, *arguments: str, code: int = 0) -> "Run":
        child = self.start(*arguments)
        return self.end(child, code)

    def end(self, child: "subprocess.Popen[str]", code: int) -> "Run":
        try:
            out, err = child.communicate(timeout=600)
        finally:
            child.kill()
        folder = max(self.root.glob("runs/*"), key=lambda path: path.stat().st_mtime_ns)
        log = (folder / "pipeline.log").read_text()
        assert child.returncode == code, f"{err}\n{out}\n{log[-3000:]}"
        until = time.monotonic() + 20
        while (left := below(self.scratch)) and time.monotonic() < until:
            time.sleep(0.1)
        assert left == [], "processes are left"
        return Run(folder, out, err, json.loads((folder / "status.json").read_text()))

    def process_of(self, verb: str) -> int:
        """The process of a verb that is running, once it is there."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for number in below(self.scratch):
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{number}/cmdline").read_text().split("\0")
                    if command[1:4] == ["-m", "infnet.cli", verb]:
                        return number
            time.sleep(0.1)
        raise AssertionError(f"infnet {verb} never ran")


@dataclass(frozen=True)
class Run:
    folder: Path
    out: str
    err: str
    status: dict

    def states(self) -> dict[str, str]:
        return {name: step["state"] for name, step in self.status["steps"].items()}

    def uri(self, step: str) -> Path:
        return Path(self.status["steps"][step]["uri"])

    @property
    def report(self) -> str:
        return (self.folder / "report.html").read_text()


def states(*words: str) -> dict[str, str]:
    return dict(zip(STEPS, words, strict=True))


def copy_checkout(to: Path) -> None:
    leave = shutil.ignore_patterns("__pycache__")
    for room in ROOMS:
        shutil.copytree(ROOT / room, to / room, ignore=leave)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The smoke run on a log in a file, without rivals."""
    folder = tmp_path_factory.mktemp("pipeline")
    checkout = folder / "checkout"
    copy_checkout(checkout)
    log = open_source(load(InfnetConfig, SMOKE).data.source)
    rows = pa.concat_tables([t for f in log.fragments() for t in log.read(f)])
    rows = rows.drop_columns(["__row_id", "__bad"])
    pa.csv.write_csv(rows, checkout / "log.csv")
    lines = SMOKE.read_text().splitlines(keepends=True)
    text = "".join(SOURCE if line.startswith("  source:") else line for line in lines)
    text = text.replace("rivals:\n  floor: {type: floor}\n", "")
    (checkout / "run.yaml").write_text(text)
    scratch = tempfile.mkdtemp(prefix="e", dir="/tmp")  # short, for the sockets of Ray
    yield Place(checkout, folder / "root", scratch)
    for number in below(scratch):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def first(place) -> Run:
    return place.run()


def test_everything_runs_but_the_deployment_that_was_not_asked_for(place, first):
    assert first.states() == states("done", "done", "done", "done", "done", "skipped")
    assert first.status["state"] == "succeeded"
    for step in STEPS[:5]:
        assert f"{step}: done in" in first.err
        assert (first.uri(step) / "manifest.json").exists()
        assert f'href="../../store/infnet-{step}/' in first.report
    assert "deploy: skipped" in first.err
    assert "recommender: done, 5 ran, 1 skipped" in first.out
    assert f"report: {first.folder / 'report.html'}" in first.out
    assert "click auc" in first.report
    assert "Finished with status" not in first.out


def test_kfp_has_typed_outputs_with_metadata(first):
    (outputs,) = first.folder.glob("kfp/*/infnet-train/executor_output.json")
    told = json.loads(outputs.read_text())
    (model,) = told["artifacts"]["model"]["artifacts"]
    assert model["uri"] == str(first.uri("train"))
    assert model["metadata"]["rows"] > 0
    assert model["metadata"]["digest"].startswith("sha256:")
    (metrics,) = told["artifacts"]["metrics"]["artifacts"]
    assert 0 < metrics["metadata"]["metrics.click.auc"] < 1
    assert (outputs.parent / "report").read_text().startswith("<!doctype html>")


def test_moved_with_its_store_it_re_runs_only_what_is_damaged_and_serves(place, first):
    """The deployment is an act, not a thing that is kept."""
    moved = Place(
        place.checkout.with_name("elsewhere"), place.root.with_name("kept"), place.scratch
    )
    shutil.copytree(place.checkout, moved.checkout)
    os.utime(moved.checkout / "log.csv")
    shutil.copytree(place.root / "store", moved.root / "store")
    name = first.uri("evaluate").name
    (part,) = (moved.root / "store/infnet-evaluate" / name / "predictions").glob("*.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    found = moved.run("--serve", "--exit", "--set", "serve.port=0")
    assert found.states() == states("cached", "cached", "done", "cached", "cached", "done")
    for step in STEPS[:5]:
        assert found.uri(step) == moved.root / "store" / f"infnet-{step}" / first.uri(step).name
    for step in ("prepare", "train", "gate", "export"):
        assert f"{step}: cached" in found.err
    log = (found.folder / "pipeline.log").read_text()
    assert f"{part} is damaged" in log
    assert "removed, making it again" in log
    assert "recommender: done, 2 ran, 4 cached" in found.out
    assert "READY http://127.0.0.1:" in found.out
    assert "Answers over HTTP" in found.report
    assert found.report.count("answered in") >= 2


def change_a_label(log: Path) -> None:
    """Of a row of the training period; name, size and time of the file stay as they are."""
    before = log.stat()
    lines = log.read_bytes().split(b"\n")
    fields = lines[9].split(b",")
    label = lines[0].split(b",").index(b'"is_like"')
    fields[label] = {b"0": b"1", b"1": b"0"}[fields[label]]
    lines[9] = b",".join(fields)
    log.write_bytes(b"\n".join(lines))
    os.utime(log, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert log.stat().st_size == before.st_size


def test_after_a_changed_byte_of_the_log_a_step_is_killed(place, first):
    change_a_label(place.checkout / "log.csv")
    child = place.start()
    os.kill(place.process_of("prepare"), signal.SIGKILL)
    found = place.end(child, 1)
    assert found.states() == states("failed", *["skipped"] * 5)
    assert found.status["steps"]["prepare"]["exit_code"] == 137
    assert "error: the step prepare was killed (exit code 137)" in found.err
    assert f"its log: {found.folder / 'pipeline.log'}" in found.err
    assert "to go on, run again: python -m pipelines run recommender" in found.err
    assert "prepare failed (exit code 137)" in found.report


def test_a_run_is_interrupted_while_it_trains(place, first):
    """What stands of the training says how far it is; the step is told by SIGTERM."""
    before = set(place.root.glob("store/infnet-train/*"))
    child = place.start("--set=train.epochs=400")
    until = time.monotonic() + 300
    while not any(
        json.loads(told.read_text())["done"] > 30
        for run in set(place.root.glob("store/infnet-train/*")) - before
        for told in run.glob("ray/model/progress.json")
    ):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    found = place.end(child, 130)
    assert found.states()["prepare"] == "done"
    assert found.uri("prepare") != first.uri("prepare")
    assert found.status["state"] == "interrupted"
    assert "interrupted; to go on, run again: python -m pipelines run recommender" in found.err
    assert "Traceback" not in found.err
    assert [n for n in os.listdir(place.scratch) if not n.startswith("torch")] == []
    (run,) = set(place.root.glob("store/infnet-train/*")) - before
    assert list(run.glob("ray/model/checkpoint_*"))


def test_what_the_byte_decides_runs_again_and_where_the_gate_blocks_the_live_model_is_served(
    place, first
):
    """The live model is trained; the new one has hardly moved from where it began."""
    live = first.uri("export")
    found = place.run(
        f"live={live}",
        "--serve",
        "--exit",
        "--set=serve.port=0",
        "--set=gate={metric: logloss}",
        "--set=train.optimizer.lr=1e-9",
        "--set=train.embeddings.lr=1e-9",
    )
    assert found.states() == states("cached", "done", "done", "done", "skipped", "skipped")
    for step in STEPS[:4]:
        assert found.uri(step) != first.uri(step)
    assert found.status["state"] == "succeeded"
    assert found.status["steps"]["gate"]["found"].startswith("blocked: ")
    assert "The gate blocked the new model:" in found.report
    assert f"the gate blocked the new model; serving the live one, {live}" in found.out
    assert "READY http://127.0.0.1:" in found.out
    assert found.out.count("candidates scored in") >= 2
    assert "Answers over HTTP" in found.report


def test_a_step_that_is_refused_says_why_and_ends_with_2(place):
    found = place.run("--set", "features.user.column=usr_id", code=2)
    assert found.states() == states("failed", *["skipped"] * 5)
    assert "error: the step prepare failed: " in found.err
    assert "'usr_id'" in found.err
    assert "nearest is 'user_id'" in found.err
    assert "Traceback" not in found.err
