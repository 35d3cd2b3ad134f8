"""The whole mission with everything on S3: raw logs, store, checkpoints, bundles and records, against
a real server over a socket. Credentials come from the environment, and from nowhere else.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from infnet.config import InfnetConfig
from layer_select.config import LayerSelectConfig
from layer_select.pretrain import build
from layer_select.pretrain.run import on_worker
from pipelines.__main__ import main
from pipelines.processes import below
from rayrun import manifest, storage
from rayrun.config import load, validate
from rayrun.data.sequences import open_sequences
from rayrun.data.simulate import catalogue
from rayrun.data.source import open_source
from rayrun.ray.worker import SingleWorker
from tests.layer_select.conftest import TINY
from tests.rayrun.faulty_s3 import faulty_s3

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "infnet" / "smoke.yaml"

COLUMNS = {"user": "user_id", "item": "video_id", "time": {"column": "time_ms", "unit": "ms"}}

LLM = {
    "name": "tiny",
    "data": {"source": {"path": "{root}/raw/clicks.parquet", "columns": {**COLUMNS, "title": "title"}}},
    "task": {**TINY["task"], "calibration": 16, "validation": 16, "test": 32, "micro_batch": 16},
    "pretrain": {
        **TINY["pretrain"],
        "epochs": 1,
        "model": {**TINY["pretrain"]["model"], "layers": 3, "width": 16, "feed_forward": 32},
    },
    "score": {"methods": [{"type": "block_influence"}]},
    "select": {"budget": {"type": "layers", "keep": 2}},
    "heal": {"epochs": 1},
    "evaluate": {"rivals": [{"type": "popularity"}], "timing": {"repeats": 0}, "bootstrap": 100},
    "serve": {"port": 0},
    "compute": TINY["compute"],
}  # fmt: skip


def write_logs(root: str) -> None:
    """The smoke log, and its clicks with titles."""
    source = load(InfnetConfig, SMOKE).data.source
    log = open_source(source)
    rows = pa.concat_tables([table for f in log.fragments() for table in log.read(f)])
    rows = rows.drop_columns(["__row_id", "__bad"])
    clicks = rows.filter(pc.equal(rows["is_click"], 1))
    titles = catalogue(source)["title_zh"]
    clicks = clicks.append_column("title", titles.take(clicks["video_id"]))
    for name, table in (("log", rows), ("clicks", clicks)):
        with storage.open(f"{root}/raw/{name}.parquet", "wb") as file:
            pq.write_table(table, file)


def write_configs(folder: Path, root: str) -> None:
    text = SMOKE.read_text().replace("rivals:\n  floor: {type: floor}\n", "")
    raw = yaml.safe_load(text)
    raw["data"]["source"] = {"path": f"{root}/raw/log.parquet", "columns": COLUMNS}
    (folder / "scorer.yaml").write_text(json.dumps(raw))
    (folder / "llm.yaml").write_text(json.dumps(LLM).replace("{root}", root))


def write_model(folder: Path, root: str) -> str:
    """A small decoder that has seen the clicks once, as another would have put it into a bucket."""
    config = validate(LayerSelectConfig, json.loads((folder / "llm.yaml").read_text()), where="llm")
    sequences = open_sequences(config.data)
    argument = {
        "config": config.to_dict(),
        "tokenizer": build.tokenizer_of(config, sequences),
        "data": sequences.digest,
        "infnet_data": "",
        "model": str(folder / "made" / "model"),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    on_worker(SingleWorker(folder / "made" / "state"), argument)
    torch.set_num_threads(threads)
    for name in storage.names(folder / "made" / "model"):
        content = (folder / "made" / "model" / name).read_bytes()
        storage.write_bytes(f"{root}/raw/model/{name}", content)
    shutil.rmtree(folder / "made")
    return f"{root}/raw/model"


@dataclass(frozen=True)
class Run:
    here: Path
    """The working directory."""
    root: str
    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        (found,) = self.here.glob("runs/*/runs/*")
        return found

    @property
    def records(self) -> str:
        return f"{self.root}/runs/{self.folder.name}"

    @property
    def status(self) -> dict:
        return json.loads(storage.read_bytes(f"{self.records}/status.json"))

    def states(self) -> dict[str, str]:
        return {name: step["state"] for name, step in self.status["steps"].items()}

    def log(self) -> str:
        return (self.folder / "pipeline.log").read_text()


@pytest.fixture
def start(bucket, tmp_path):
    """Starts `python -m pipelines run` in an empty directory, with its root in the bucket."""
    scratch = tempfile.mkdtemp(prefix="e", dir="/tmp")  # short, for the sockets of Ray
    environment = {**os.environ, "TMPDIR": scratch, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}

    def run(*arguments: str, meanwhile: Callable[[str], None] = lambda scratch: None) -> Run:
        command = [sys.executable, "-m", "pipelines", "run", *arguments]
        child = subprocess.Popen(
            [*command, "--root", f"{bucket}/mission"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            meanwhile(scratch)
            out, err = child.communicate(timeout=1500)
        finally:
            child.kill()
        until = time.monotonic() + 20
        while (left := below(scratch)) and time.monotonic() < until:
            time.sleep(0.1)
        assert left == [], "processes are left"
        return Run(tmp_path, f"{bucket}/mission", child.returncode, out, err)

    yield run
    for number in below(scratch):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)


UNASKED = {
    "tune",  # search=false
    "pretrain",  # a model is given
    *("embed", "prepare_llm_features", "train_llm_features", "evaluate_llm_features"),
}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.timeout(1800)
def test_side_by_side_runs_and_serves_with_everything_on_s3(start, bucket, tmp_path):
    root = f"{bucket}/mission"
    write_logs(root)
    write_configs(tmp_path, root)
    found = start(
        "side_by_side",
        "config=scorer.yaml",
        "llm_config=llm.yaml",
        f"model={write_model(tmp_path, root)}",
        f"live={root}/live/scorer",
        f"llm_live={root}/live/recommender",
        "search=false",
        "--serve",
        "--exit",
        "--set=serve.port=0",
        "--set=train.epochs=1",
    )
    assert found.code == 0, f"{found.err}\n{found.out}\n{found.log()[-6000:]}"
    steps = found.status["steps"]
    states = found.states()
    asked = [name for name in states if name not in UNASKED]
    assert states == dict.fromkeys(asked, "done") | dict.fromkeys(UNASKED, "skipped")
    assert found.status["state"] == "succeeded"

    for name in asked:
        assert steps[name]["uri"].startswith(f"{root}/")
        manifest.verify(steps[name]["uri"])
        assert storage.exists(f"{found.records}/steps/{name}.json")
    for step, live in (("export", "scorer"), ("export_llm", "recommender")):
        live_digest = manifest.content_of(f"{root}/live/{live}")
        assert live_digest == manifest.content_of(steps[step]["uri"])
    there = storage.names(root)
    assert not [name for name in there if name.endswith((".lock", ".incomplete"))]
    trained = steps["train"]["uri"].removeprefix(f"{root}/")
    assert f"{trained}/checkpoint/network.safetensors" in there
    page = storage.read_bytes(f"{found.records}/report.html").decode()
    assert f'href="../../{trained}/report.html"' in page
    assert "Answers over HTTP" in page

    assert found.out.count("READY http://127.0.0.1:") == 2
    assert "/scorer" in found.out
    assert "/recommender" in found.out
    assert f"report: {found.records}/report.html" in found.out
    assert f"log, events and KFP's own outputs: {found.folder}" in found.out
    told = json.loads(storage.read_bytes(f"{found.records}/local.json"))
    assert told["folder"] == str(found.folder)
    here = {path.name for path in found.folder.iterdir()}
    assert here >= {"pipeline.yaml", "arguments.json", "pipeline.log", "events.jsonl", "kfp"}
    assert not here & {"status.json", "report.html", "steps"}
    assert list(tmp_path.rglob("s3:*")) == []  # what a path made of a URI would leave
    for said in (found.log(), found.out, found.err, page):
        assert "SECRET" not in said


# --- A run that does not reach its end: no Ray starts -----------------------------------------


def test_a_step_that_is_refused_is_told_in_the_records(start, tmp_path):
    found = start("recommender", f"config={SMOKE}", "--set", "features.user.column=usr_id")
    assert found.code == 2, found.err
    assert "error: the step prepare failed: " in found.err
    assert "nearest is 'user_id'" in found.err
    assert f"its log: {found.folder / 'pipeline.log'}" in found.err
    assert found.status["state"] == "failed"
    assert found.states()["prepare"] == "failed"
    assert set(found.states().values()) == {"failed", "skipped"}
    assert (
        "prepare failed (exit code 2)"
        in storage.read_bytes(f"{found.records}/report.html").decode()
    )


def kill_the_step(scratch: str) -> None:
    """The KFP process of a step and the verb below it: neither can say a word."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for number in below(scratch):
            with contextlib.suppress(OSError, StopIteration):
                command = Path(f"/proc/{number}/cmdline").read_text().split("\0")
                if command[1:4] != ["-m", "infnet.cli", "prepare"]:
                    continue
                status = Path(f"/proc/{number}/status").read_text().splitlines()
                parent = next(line.split()[1] for line in status if line.startswith("PPid:"))
                os.kill(int(parent), signal.SIGKILL)
                os.kill(number, signal.SIGKILL)
                return
        time.sleep(0.02)
    raise AssertionError("infnet prepare never ran")


def test_a_step_that_left_no_record_is_told_by_the_events_here(start):
    found = start("recommender", f"config={SMOKE}", meanwhile=kill_the_step)
    assert found.code == 1, found.err
    assert "error: the step prepare was killed (exit code 137)" in found.err
    assert found.states() == {"prepare": "failed"} | dict.fromkeys(
        ("train", "evaluate", "gate", "export", "deploy"), "skipped"
    )
    assert found.status["state"] == "failed"
    assert storage.exists(f"{found.records}/steps/prepare.json")


# --- Refused before anything runs --------------------------------------------------------------


def no_such_bucket(patch: pytest.MonkeyPatch, port: int) -> str:
    return "s3://no-such-bucket/mission"


def nobody_there(patch: pytest.MonkeyPatch, port: int) -> str:
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    return ""


def no_credentials(patch: pytest.MonkeyPatch, port: int) -> str:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(name)
    patch.setenv("HOME", "/nonexistent")
    return ""


def wrong_credentials(patch: pytest.MonkeyPatch, port: int) -> str:
    patch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    return ""


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_such_bucket, "s3://no-such-bucket/mission: there is no bucket 'no-such-bucket'"),
        (nobody_there, "cannot be reached"),
        (no_credentials, "refused the credentials (Unable to locate credentials)"),
        (wrong_credentials, "refused the credentials"),
    ],
)
def test_a_root_that_cannot_be_used_is_refused_at_once(
    spoil, says, bucket, s3_server, closed_port, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    root = spoil(monkeypatch, closed_port) or f"{bucket}/mission"
    if spoil is wrong_credentials:
        s3_server.require_credentials(after=0)
    began = time.monotonic()
    try:
        code = main(["run", "recommender", f"config={SMOKE}", "--root", root])
    finally:
        s3_server.require_credentials(after=float("inf"))
    assert time.monotonic() - began < 15
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.count("error: ") == 1
    assert says in said
    assert "Traceback" not in said
    assert "hush" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_takes_nothing_is_refused_before_anything_is_made(
    bucket, s3_server, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with faulty_s3(s3_server.url) as proxy:
        proxy.fail("503", "PUT ")
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        code = main(["run", "recommender", f"config={SMOKE}", "--root", f"{bucket}/mission"])
    assert code == 2
    said = capsys.readouterr().err
    assert f"{bucket}/mission/runs/recommender-" in said
    assert "did not serve the request" in said
    assert list(tmp_path.iterdir()) == []
