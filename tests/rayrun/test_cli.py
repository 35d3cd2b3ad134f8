import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest

from rayrun import manifest, storage
from rayrun.cli import Flag, Verb, load_config, main
from rayrun.config import Config, ConfigError, Place
from rayrun.metrics import Result


class Inputs(Config):
    data: Annotated[str, Place] = ""
    checkpoint: Annotated[str, Place] = ""


class Toy(Config):
    name: str
    rows: int = 3
    fail: str = ""
    inputs: Inputs = Inputs()


def prepare(config: Toy, out: str) -> Result:
    """A verb that writes a dataset of `rows` lines."""
    started = time.monotonic()
    with storage.claim(out), storage.output(out) as staging:
        (staging / "rows.txt").write_text("x\n" * config.rows)
        if config.fail == "bad":
            raise ConfigError("rows.txt must have a column 'user', found only 'item'")
        if config.fail == "fault":
            raise KeyError("surprise")
        if config.fail == "full":
            with open("/dev/full", "w") as device:
                device.write("x" * 100_000)
        if config.fail == "interrupt":
            raise KeyboardInterrupt
        if config.fail == "sleep":
            print("sleeping", flush=True)
            time.sleep(60)
        if config.fail == "pipe":
            raise BrokenPipeError
        manifest.write(staging, kind="toy.dataset", format_version=1, config=config)
        result = Result.of(
            "prepare",
            config,
            started=started,
            split="test",
            metrics={"click": {"auc": 0.5}},
            rows=config.rows,
        )
        result.write(staging)
        (staging / "report.html").write_text("<html>")
    return result


def evaluate(config: Toy, out: str, *, split: str, data: str | None) -> None:
    storage.write_bytes(
        storage.join(out, "said.json"), json.dumps([config.inputs.data, split, data]).encode()
    )


def plan(config: Toy, out: str) -> str:
    return f"plan: {config.rows} rows"


def draft(out: str, *, file: str) -> str:
    return f"draft of {file} in {out}"


VERBS = (
    Verb(name="prepare", help="raw log to shards", run=prepare, config=Toy, plan=plan),
    Verb(
        name="evaluate",
        help="measure",
        run=evaluate,
        config=Toy,
        flags=(
            Flag(name="split", help="which part", default="test", choices=("valid", "test")),
            Flag(name="data", help="raw rows"),
        ),
    ),
    Verb(
        name="init",
        help="first draft",
        run=draft,
        flags=(Flag(name="file", help="the log", positional=True, required=True),),
    ),
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Runs the command in an empty directory with a config of the given text."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, config: str = "name: a") -> int:
        Path("toy.yaml").write_text(config)
        return main("toy", VERBS, arguments)

    return run


# --- What it does ----------------------------------------------------------------------------


def test_a_verb_writes_below_runs_and_names_the_report(toy, capsys):
    assert toy("prepare", "toy.yaml") == 0
    assert Path("runs/a/prepare/rows.txt").read_text() == "x\n" * 3
    found = capsys.readouterr().out.splitlines()
    assert found[-1] == "report: runs/a/prepare/report.html"
    assert found[-2].startswith("prepare: done in")
    assert found[:3] == ["click (test)", "                      auc", "  model            0.5000"]


def test_set_changes_a_key_and_out_the_place(toy):
    assert toy("prepare", "toy.yaml", "--set", "rows=5", "--set", "rows=2", "--out", "here") == 0
    assert Path("here/rows.txt").read_text() == "x\n" * 2
    assert not Path("runs").exists()


def test_a_fragment_is_merged(toy):
    Path("more.yaml").write_text("data: elsewhere")
    assert toy("evaluate", "toy.yaml", "--set", "inputs=@more.yaml", "--out", "e") == 0
    assert json.loads(Path("e/said.json").read_text()) == ["elsewhere", "test", None]


def test_an_earlier_output_stands_for_its_config_and_is_the_input(toy):
    assert toy("prepare", "toy.yaml", "--set", "rows=5") == 0
    assert toy("evaluate", "runs/a/prepare", "--split", "valid", "--data", "f.csv") == 0
    assert json.loads(Path("runs/a/evaluate/said.json").read_text()) == [
        "runs/a/prepare",
        "valid",
        "f.csv",
    ]


def test_a_set_wins_over_the_earlier_output(toy):
    assert toy("prepare", "toy.yaml") == 0
    assert toy("evaluate", "runs/a/prepare", "--set", "inputs.data=other", "--out", "e") == 0
    assert json.loads(Path("e/said.json").read_text())[0] == "other"


def test_outputs_and_configs_may_lie_on_s3(toy, bucket):
    assert toy("prepare", "toy.yaml", "--out", bucket + "/p") == 0
    assert toy("evaluate", bucket + "/p", "--out", bucket + "/e") == 0
    assert json.loads(storage.read_bytes(bucket + "/e/said.json"))[0] == bucket + "/p"
    storage.write_bytes(bucket + "/toy.yaml", b"name: b")
    assert load_config(Toy, bucket + "/toy.yaml") == Toy(name="b")


def test_a_dry_run_prints_the_plan_and_writes_nothing(toy, capsys):
    assert toy("prepare", "toy.yaml", "--dry-run") == 0
    assert capsys.readouterr().out == (
        "plan: 3 rows\n\nprepare would write to runs/a/prepare; nothing was done (--dry-run)\n"
    )
    assert toy("evaluate", "toy.yaml", "--dry-run") == 0
    assert "rows: 3" in capsys.readouterr().out
    assert [p.name for p in Path().iterdir()] == ["toy.yaml"]


def test_a_verb_without_config_takes_words(toy, capsys):
    assert toy("init", "log.csv") == 0
    assert capsys.readouterr().out == "draft of log.csv in .\n"


# --- How it fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        ((), "name: a\nrwos: 1", "toy.yaml is not a valid Toy:\n  rwos: there is no such key; did you mean 'rows'?"),
        ((), "name: a\nrows: many", "rows: Input should be a valid integer; found 'many'"),
        ((), "name: [", "toy.yaml, line 1, column 8 is not valid YAML"),
        ((), "- a", "toy.yaml must hold a mapping"),
        (("--set", "rows"), "name: a", "--set needs KEY=VALUE or KEY=@FILE, found 'rows'"),
        ((), "name: a\nfail: bad", "rows.txt must have a column 'user'"),
        ((), "name: a\nfail: full", "is full: "),
    ],
)  # fmt: skip
def test_bad_input_is_one_readable_error_and_leaves_nothing(
    toy, capsys, arguments, config, message
):
    assert toy("prepare", "toy.yaml", *arguments, config=config) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: ")
    assert message in found.err
    assert "Traceback" not in found.err
    assert found.out == ""
    assert not Path("runs/a").exists() or list(Path("runs/a").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: VERB"),
        (("prepar", "toy.yaml"), "invalid choice: 'prepar'"),
        (("prepare",), "the following arguments are required: CONFIG"),
        (("prepare", "toy.yaml", "--sett", "a=1"), "unrecognized arguments: --sett"),
        (("prepare", "toy.yaml", "--dry"), "unrecognized arguments: --dry"),
        (("evaluate", "toy.yaml", "--split", "train"), "argument --split: invalid choice: 'train'"),
        (("prepare", "nowhere.yaml"), "nowhere.yaml: there is no such file"),
        (("prepare", "nowhere"), "CONFIG must be a YAML file or the --out directory of an earlier verb; there is nothing at nowhere"),
        (("prepare", "."), ". is no finished artifact (there is no manifest.json)"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_bad_input(toy, capsys, arguments, message):
    assert toy(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_directory_that_is_no_output_is_left_alone(toy, capsys):
    Path("photos").mkdir()
    Path("photos/a.jpg").touch()
    assert toy("prepare", "toy.yaml", "--out", "photos") == 2
    assert "is no earlier output" in capsys.readouterr().err
    assert [p.name for p in Path("photos").iterdir()] == ["a.jpg"]


def test_a_fault_of_ours_is_1_with_a_short_message_and_the_traceback(toy, capsys):
    assert toy("prepare", "toy.yaml", config="name: a\nfail: fault") == 1
    found = capsys.readouterr().err
    assert "Traceback (most recent call last)" in found
    assert "error: this is a fault of the program, not of your input: KeyError: 'surprise'" in found
    assert list(Path("runs/a").iterdir()) == []


def test_an_error_of_a_person_in_a_task_of_ray_stays_one(toy, capsys):
    from ray.exceptions import RayTaskError

    def work(config: Toy, out: str) -> None:
        behind = ConfigError("the log must have a column 'user'")
        raise RuntimeError("the task failed") from RayTaskError(
            "work", "a traceback", behind
        ).as_instanceof_cause()

    Path("toy.yaml").write_text("name: a")
    assert (
        main("toy", [Verb(name="work", help="", run=work, config=Toy)], ["work", "toy.yaml"]) == 2
    )
    assert capsys.readouterr().err == "error: the log must have a column 'user'\n"


def test_an_interrupt_is_130_and_says_how_to_go_on(toy, capsys):
    assert toy("prepare", "toy.yaml", "--set", "name=a b", config="name: a\nfail: interrupt") == 130
    assert (
        "interrupted; to go on, run again: toy prepare toy.yaml --set 'name=a b'"
        in capsys.readouterr().err
    )


SLEEPER = """
import sys
sys.path.insert(0, {tests!r})
from test_cli import VERBS, main
sys.exit(main("toy", VERBS, ["prepare", "toy.yaml"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cleans_up_and_leaves_with_130(tmp_path, number):
    (tmp_path / "toy.yaml").write_text("name: a\nfail: sleep")
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(tests=str(Path(__file__).parent))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "sleeping\n"
    child.send_signal(number)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130, said
    assert "run again: toy prepare toy.yaml" in said
    assert list((tmp_path / "runs/a").iterdir()) == []


def test_a_signal_in_executed_source_leaves_with_130(tmp_path):
    """Python ends a `python -m` by SIGINT once a KeyboardInterrupt has crossed an `exec`."""
    (tmp_path / "module.py").write_text(
        "import os, sys\n"
        "from rayrun.cli import Verb, main\n"
        "def run(out):\n    exec('import os, time; os.kill(os.getpid(), 15); time.sleep(9)')\n"
        "sys.exit(main('toy', [Verb(name='work', help='', run=run)], ['work']))\n"
    )
    child = subprocess.run(
        [sys.executable, "-m", "module"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert child.returncode == 130, child.stderr


def test_a_second_run_on_one_output_is_told(toy, capsys, tmp_path):
    hold = "import sys, time\nfrom rayrun import storage\nwith storage.claim(sys.argv[1]):\n print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "runs/a/prepare")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert toy("prepare", "toy.yaml") == 2
        assert f"is being written by process {holder.pid}" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.wait()


def test_a_warning_is_one_line(toy, capsys):
    import warnings

    def warn(config: Toy, out: str) -> None:
        warnings.warn("rows is ignored", stacklevel=1)

    Path("toy.yaml").write_text("name: a")
    assert (
        main("toy", [Verb(name="warn", help="", run=warn, config=Toy)], ["warn", "toy.yaml"]) == 0
    )
    assert capsys.readouterr().err == "warning: rows is ignored\n"


# --- Help ------------------------------------------------------------------------------------


def test_the_flags_every_verb_shares_are_four(capsys):
    assert main("toy", VERBS, ["prepare", "--help"]) == 0
    found = capsys.readouterr().out
    assert [w for w in found.split() if w.startswith("--") and w.isascii()].count("--set") == 1
    for flag in ("CONFIG", "--set KEY=VALUE", "--out DIR", "--dry-run"):
        assert flag in found
    assert "runs/<config name>/prepare" in found


def test_help_lists_the_verbs_and_version_tells_the_version(capsys):
    assert main("toy", VERBS, ["--help"]) == 0
    assert "raw log to shards" in capsys.readouterr().out
    assert main("toy", VERBS, ["--version"]) == 0
    assert capsys.readouterr().out == "toy 0.1.0\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]])
def test_help_of_the_product_imports_nothing_heavy_and_is_instant(arguments):
    code = (
        "import sys\n"
        "from infnet.cli import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'pyarrow', 'numpy', 'matplotlib', 'fsspec', 's3fs'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "[]"
