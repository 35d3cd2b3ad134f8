"""`python -m pipelines`: what is refused before anything runs, and what the views show."""

import socket
import sys
from pathlib import Path

import pytest

from pipelines import APPLICATIONS
from pipelines.__main__ import main
from pipelines.compiled import PipelineError
from pipelines.run import Ended, explain
from pipelines.serve import _deploy_live, _live
from pipelines.view import duration, view
from rayrun.run_record import Step

SMOKE = Path(__file__).parents[2] / "configs" / "infnet" / "smoke.yaml"


def test_list_shows_steps_and_arguments(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "recommender: prepare → train → evaluate → gate" in said
    assert "steps: prepare, train, evaluate, gate, export, deploy" in said
    assert "  sets (default []): keys to set" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "recomender"], "found 'recomender'; did you mean 'recommender'?"),
        (["compile", "other"], "proxy_search), found 'other'"),
        (["run", "recommender"], "the pipeline recommender needs config=…"),
        (["run", "recommender", "config=a", "sets=3"], "sets must be a list in JSON"),
        (["run", "recommender", "config=a", "rot=b"], "rot is no argument of the pipeline"),
        (["run", "recommender", "--root", "gs://b/k", "config=a"], "--root must be a directory or s3://BUCKET/KEY, found gs://b/k"),
        (["run", "recommender", "--root", "/dev/null/x", "config=a"], "cannot be made"),
        (["run", "recommender", "config=a", "--exit"], "--exit says when --serve ends"),
        (["run", "recommender", "config=a", "--sett", "b"], "unrecognized arguments: --sett"),
        (["run", "recommender", "config=a", "serve_address=h:1", "--serve"], "leave out serve_address"),
        (["run", "recommender", "config=/nowhere.yaml", "--serve"], "/nowhere.yaml"),
        (["run", "proxy_search", "config=a", "--serve"], "proxy_search deploys nothing; leave it out, or run one of recommender, compact_llm, side_by_side"),
        (["compile", "--out", "/dev/null/x"], "--out /dev/null/x cannot be written"),
        (["lst"], "invalid choice: 'lst'"),
        ([], "required: COMMAND"),
    ],
)  # fmt: skip
def test_bad_input_is_one_readable_error(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert says in said
    assert "Traceback" not in said
    assert list(tmp_path.rglob("*")) == []


def test_a_port_that_is_taken_is_told_before_anything_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sets = ("--set", f"serve.port={port}")
        code = main(["run", "recommender", f"config={SMOKE}", "--serve", *sets])
    assert code == 2
    assert f"serve.port ({port}) is taken" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_lines_say_what_changed(capsys):
    with view("p") as show:
        show({"a": Step("a"), "b": Step("b")})
        show({"a": Step("a", "running", "reading"), "b": Step("b")})
        show({"a": Step("a", "cached", seconds=2.04), "b": Step("b", "running")})
        show({"a": Step("a", "cached", seconds=2.04), "b": Step("b", "failed", seconds=125)})
    assert capsys.readouterr().err.splitlines() == [
        "a: running",
        "a: cached (2.0 s)",
        "b: running",
        "b: failed after 2 min 05 s",
    ]


def test_durations():
    assert [duration(s) for s in (0.04, 59.94, 60, 3725)] == ["0.0 s", "59.9 s", "1 min 00 s", "62 min 05 s"]  # fmt: skip


def test_a_terminal_shows_a_table(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with view("p  /runs/1") as show:
        show({"a": Step("a", "cached", seconds=2.0), "b": Step("b", "running", "loss .43")})
    said = capsys.readouterr().err
    for part in ("p  /runs/1", "✓ a", "cached", "2.0 s", "▶ b", "loss .43"):
        assert part in said


def test_a_runner_that_ends_outside_of_the_steps(tmp_path, capsys):
    (tmp_path / "pipeline.log").write_text("some\nModuleNotFoundError: no kfp\n\n")
    assert explain(Ended(tmp_path, {"a": Step("a", "skipped")}, 1), "again") == 1
    said = capsys.readouterr().err
    assert "ended with exit code 1 outside of the steps: ModuleNotFoundError: no kfp" in said
    assert f"its log: {tmp_path / 'pipeline.log'}" in said


def test_a_live_bundle_that_cannot_be_served_is_told(tmp_path):
    arguments = {"config": str(SMOKE), "live": str(tmp_path / "nothing")}
    ended = Ended(tmp_path, {}, 0)
    (scorer,) = APPLICATIONS["recommender"]
    with pytest.raises(
        PipelineError,
        match=rf"(?s)live bundle {tmp_path}/nothing cannot be served: .*infnet does not go live: .*back",
    ):
        _deploy_live(scorer, arguments, "127.0.0.1:1", _live(scorer, arguments), ended)
    assert f"error: {tmp_path}/nothing" in (tmp_path / "pipeline.log").read_text()
