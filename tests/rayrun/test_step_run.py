"""A verb as a step: a real child process, its lines, its end, its result."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import rayrun
from rayrun import step
from rayrun.config import ConfigError
from rayrun.step import run_step

PRODUCT = """
import os, signal, sys, time
from pathlib import Path
from rayrun import manifest, storage
from rayrun.cli import Flag, Verb, main
from rayrun.config import Config, ConfigError
from rayrun.metrics import Result

class Toy(Config):
    name: str
    rows: int = 3
    say: str = ""

def make(config, out, color=""):
    started = time.monotonic()
    print(f"made of {color or 'nothing'}, wall of 點擊")
    print("warning: half of it is missing", file=sys.stderr)
    if config.say == "bad":
        raise ConfigError("rows.txt must have a column 'user', found only 'item'")
    if config.say == "fault":
        raise KeyError("surprise")
    if config.say == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.say == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    if config.say == "orphan":
        os.system("sleep 30 &")
        os.kill(os.getpid(), signal.SIGKILL)
    if config.say in ("sleep", "deaf"):
        Path("pid").write_text(str(os.getpid()))
        try:
            time.sleep(60)
        finally:
            time.sleep(60 if config.say == "deaf" else 0.5)  # Ray takes its time, too
            Path("cleaned").write_text("")
    with storage.output(out) as staging:
        result = Result.of("make", config, started=started, metrics={"click": {"auc": 0.5}}, rows=config.rows)
        result.write(staging)
        manifest.write(staging, kind="toy.dataset", format_version=1, config=config)
    return result

FLAGS = (Flag(name="color", help="any", default=""),)
VERBS = (Verb(name="make", help="it", run=make, config=Toy, flags=FLAGS, store=True),)

if __name__ == "__main__":
    sys.exit(main("toy-product", VERBS))
"""


@pytest.fixture(autouse=True)
def product(tmp_path, monkeypatch):
    """A product of one verb, in an empty directory that is the working one."""
    (tmp_path / "toy_product").mkdir()
    (tmp_path / "toy_product/__init__.py").write_text("")
    (tmp_path / "toy_product/cli.py").write_text(PRODUCT)
    (tmp_path / "toy.yaml").write_text("name: a")
    roots = [str(tmp_path), str(Path(rayrun.__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(roots))
    monkeypatch.setenv(step.EVENTS, str(tmp_path / "events.jsonl"))
    monkeypatch.chdir(tmp_path)


def events() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path("events.jsonl").read_text().splitlines()]


def make(*sets: str, config: str = "toy.yaml", **more: object):
    return run_step("toy-product", "make", config, sets=sets, **more)


# --- What it brings back ---------------------------------------------------------------------


def test_a_step_is_the_command_and_brings_its_result_back(capsys):
    done = make("rows=5", store="kept", flags={"color": "wood", "left_out": None}, step="first")
    assert done.uri.startswith(f"{Path.cwd()}/kept/toy-product-make/")
    assert not done.cached
    assert done.key.startswith("sha256:")
    assert done.digest.startswith("sha256:")
    assert done.result is not None
    assert done.result.rows == 5
    assert done.result.flat() == {"metrics.click.auc": 0.5}
    said = capsys.readouterr()
    assert "made of wood, wall of 點擊" in said.out
    assert "make: done in" in said.out
    assert "warning: half of it is missing" in said.err
    told = events()
    assert [told[0]["state"], told[-1]["state"]] == ["running", "done"]
    assert {one["step"] for one in told} == {"first"}
    assert "made of wood, wall of 點擊" in [one["line"] for one in told]
    assert told[-1] | {"time": 0, "line": 0, "seconds": 0} == {
        "time": 0, "step": "first", "state": "done", "line": 0, "seconds": 0, "uri": done.uri,
        "exit_code": 0,
    }  # fmt: skip

    again = make("rows=5", store="kept", flags={"color": "wood"}, run="run")
    assert again.cached
    assert (again.uri, again.key, again.digest) == (done.uri, done.key, done.digest)
    assert again.result == done.result
    assert events()[-1]["state"] == "cached"
    assert json.loads(Path("run/steps/make.json").read_text()) == events()[-1]
    assert make("rows=5", store="kept", flags={"color": "iron"}).key != done.key


def test_a_configuration_may_be_the_text_itself_and_out_a_place(monkeypatch):
    monkeypatch.delenv(step.EVENTS)
    done = make(config="name: b\nrows: 7\n", out="there")
    assert done.uri == str(Path("there").absolute())
    assert (done.key, done.cached) == ("", False)
    assert done.result is not None
    assert done.result.rows == 7
    assert not Path("events.jsonl").exists()


def test_a_store_and_an_out_are_not_both_given():
    with pytest.raises(ConfigError, match=r"step make: give store \(a\) or out \(b\), not both"):
        make(store="a", out="b")


def test_events_of_many_steps_at_once_stay_whole_lines():
    names = [f"step-{number}" for number in range(8)]

    def write(name: str) -> None:
        log = step._Events("events.jsonl", name, "")
        for number in range(50):
            log.write("running", line=f"{number} " + "x" * 20_000)

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = events()
    assert len(told) == 400
    assert {one["step"] for one in told} == set(names)


# --- How it fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("say", "code", "says"),
    [
        ("bad", 2, "bad input (exit code 2): rows.txt must have a column 'user', found only"),
        ("[]", 2, "bad input (exit code 2): toy.yaml is not a valid Toy: say: "),
        ("fault", 1, "a fault of the program (exit code 1): this is a fault of the program"),
        ("kill", 137, "killed (exit code 137), most often because the memory ran out"),
        ("abort", 134, "killed by SIGABRT (exit code 134); run it again to go on"),
        ("orphan", 137, "killed (exit code 137)"),
    ],
)
def test_a_step_that_fails_ends_with_its_code_and_a_readable_last_line(say, code, says, capsys):
    began = time.monotonic()
    with pytest.raises(SystemExit) as end:
        make(f"say={say}", out="there", run="run")
    assert time.monotonic() - began < 20  # whoever holds its pipes still is not waited for
    assert end.value.code == code
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert last.startswith(f"step make failed: {says}")
    told = events()[-1]
    assert (told["state"], told["exit_code"]) == ("failed", code)
    assert f"step make failed: {told['line']}" == last
    assert json.loads(Path("run/steps/make.json").read_text()) == told


# --- How it is stopped -----------------------------------------------------------------------


def caller(say: str) -> subprocess.Popen[bytes]:
    """A process that runs a step which sleeps."""
    code = (
        "from rayrun.step import run_step\n"
        f"run_step('toy-product', 'make', 'toy.yaml', sets=['say={say}'], out='there')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True
    )
    until = time.monotonic() + 30
    while not (Path("pid").exists() and Path("pid").read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return process


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_step_once_and_its_clean_up_is_awaited(number):
    process = caller("sleep")
    pid = int(Path("pid").read_text())
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # an impatient second Ctrl-C does not cut the clean-up short
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert Path("cleaned").exists()
    assert gone(pid)
    last = err.decode().rstrip().splitlines()[-1]
    assert last == "step make failed: interrupted (exit code 130); run it again to go on"
    assert events()[-1]["exit_code"] == 130


def test_a_step_ends_with_its_caller_even_if_that_is_killed():
    process = caller("sleep")
    pid = int(Path("pid").read_text())
    process.kill()
    process.communicate(timeout=30)
    until = time.monotonic() + 20
    while not gone(pid):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert Path("cleaned").exists()


def test_a_step_that_does_not_end_is_killed_after_its_grace(monkeypatch, capsys):
    monkeypatch.setattr(step, "GRACE_S", 1.0)
    timer = threading.Timer(4.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as end:
        make("say=deaf", out="there")
    timer.join()
    assert end.value.code == 137
    assert gone(int(Path("pid").read_text()))
