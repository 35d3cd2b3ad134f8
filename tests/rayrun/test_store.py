"""The store: what is used again, what is made again, and what a person is told."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest

import rayrun
from rayrun import manifest, storage, store
from rayrun.cli import Flag, Verb, main
from rayrun.config import Config, ConfigError, Json, Place, load
from rayrun.metrics import Result


class Inputs(Config):
    data: Annotated[str, Place] = ""


class Toy(Config):
    name: str = "toy"
    log: Annotated[str, Place] = "log.csv"
    rows: int = 3
    evaluate: int = 1
    say: Annotated[str, Place] = ""
    inputs: Inputs = Inputs()
    compute: int = 1


def reads(config: Toy) -> Json:
    return {"source": storage.content_digest(config.log)}


def prepare(config: Toy, out: str) -> Result:
    """Copies the log, and does on the way what `say` says."""
    started = time.monotonic()
    with storage.claim(out), storage.output(out) as staging:
        log = Path(config.log).read_bytes()
        (staging / "shard").write_bytes(log * config.rows)
        if config.say == "sleep":
            print("sleeping", flush=True)
            time.sleep(60)
        if config.say == "interrupt":
            raise KeyboardInterrupt
        if config.say == "bad":
            raise ConfigError("the log must have rows, found none; write some")
        if config.say == "grow":
            Path(config.log).write_bytes(log + b"!")
        result = Result.of("prepare", config, started=started, rows=config.rows)
        result.write(staging)
        now = reads(config)
        manifest.write(staging, kind="toy.dataset", format_version=1, config=config, inputs=now)
    return result


def train(config: Toy, out: str) -> Result:
    """Two steps; `say: stop` ends after the first, and the next call goes on."""
    started = time.monotonic()
    place = storage.join(out, "steps")
    done = storage.read_bytes(place) if storage.exists(place) else b""
    storage.write_bytes(place, done + b"1")
    state = {"kind": "toy.run", "format_version": 1, "config": config}
    if config.say == "stop":
        manifest.write(out, **state, info={"complete": False})
        raise KeyboardInterrupt
    result = Result.of("train", config, started=started, rows=len(done) + 1)
    result.write(out)
    manifest.write(out, **state, info={"complete": True})
    return result


VERBS = (
    Verb(
        name="prepare",
        help="raw log to shards",
        run=prepare,
        config=Toy,
        store=True,
        sections=("rows",),
        inputs=(),
        reads=reads,
    ),
    Verb(name="train", help="in steps", run=train, config=Toy, store=True, sections=("rows",)),
    Verb(
        name="serve",
        help="no result",
        run=prepare,
        config=Toy,
        flags=(Flag(name="port", help="where", place=True),),
    ),
)


@pytest.fixture
def toy(tmp_path, monkeypatch, capsys):
    """Runs a verb with `--store kept` in an empty directory; its exit code, record and lines."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text("name: a")
    Path("log.csv").write_text("user,item\n")

    def run(verb: str, *sets: str, kept: str = "kept", more: tuple[str, ...] = ()):
        given = [f"--set={one}" for one in sets]
        code = main(
            "toy", VERBS, [verb, "toy.yaml", *given, "--store", kept, "--record", "r.json", *more]
        )
        said = capsys.readouterr()
        record = json.loads(Path("r.json").read_text())
        assert record["exit_code"] == code
        return code, record, said

    return run


# --- What is used again ----------------------------------------------------------------------


def test_the_second_time_the_result_is_taken_as_it_stands_and_says_so(toy, tmp_path):
    code, first, said = toy("prepare")
    assert code == 0
    assert "prepare: done in" in said.out
    assert first["uri"] == str(tmp_path / "kept/toy-prepare" / first["key"].partition(":")[2][:16])
    assert first["digest"] == manifest.content_of(first["uri"])
    assert not first["cached"]
    before = Path(first["uri"], "manifest.json").stat().st_mtime_ns
    code, second, said = toy("prepare")
    assert code == 0
    assert f"prepare: cached, verified; {first['uri']}" in said.out
    assert second | {"seconds": 0} == first | {"cached": True, "seconds": 0}
    assert Path(first["uri"], "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("setting", ["name=b", "compute=2", "evaluate=2", "say=nothing"])
def test_what_decides_nothing_runs_nothing_again(toy, setting):
    toy("prepare")
    assert toy("prepare", setting)[1]["cached"]


def test_the_log_and_the_store_may_move(toy, tmp_path, monkeypatch):
    toy("prepare")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for name in ("kept", "log.csv", "toy.yaml"):
        shutil.move(tmp_path / name, name)
    _, record, _ = toy("prepare")
    assert record["cached"]
    assert record["uri"].startswith(str(tmp_path / "other/kept"))


def test_a_store_that_cannot_be_written_is_read(toy, monkeypatch):
    _, first, _ = toy("prepare")
    monkeypatch.setattr(storage, "claim", None)  # no lock file is written to read
    assert toy("prepare")[1]["cached"]
    assert first["uri"]


# --- What is made again ----------------------------------------------------------------------


def test_a_changed_byte_of_the_log_runs_again_though_name_size_and_time_are_the_same(toy):
    _, first, _ = toy("prepare")
    before = os.stat("log.csv")
    Path("log.csv").write_text("user,itEm\n")
    os.utime("log.csv", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat("log.csv")
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    _, second, _ = toy("prepare")
    assert not second["cached"]
    assert second["key"] != first["key"]


def test_a_changed_setting_and_a_changed_input_run_again(toy):
    _, data, _ = toy("prepare")
    _, other, _ = toy("prepare", "rows=4")
    assert other["key"] != data["key"]
    _, run, _ = toy("train", f"inputs.data={data['uri']}")
    shutil.copytree(data["uri"], "copy")
    assert toy("train", "inputs.data=copy")[1]["cached"]
    assert toy("train", f"inputs.data={other['uri']}")[1]["key"] != run["key"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("shard", b"user,itEm\n" * 3, r"shard is damaged: its SHA-256 is not the manifest's"),
        ("shard", b"user", "shard is truncated: it has 4 bytes, the manifest says 30"),
        ("shard", None, "shard is missing, the manifest lists it"),
        ("manifest.json", b"{", "manifest.json is damaged"),
        ("manifest.json", None, "is no finished artifact"),
        ("result.json", b"{}", "result.json is truncated"),
    ],
)
def test_what_is_damaged_is_told_removed_and_made_again(toy, name, content, says):
    _, first, _ = toy("prepare")
    file = Path(first["uri"], name)
    file.unlink() if content is None else file.write_bytes(content)
    code, second, said = toy("prepare")
    assert code == 0
    assert says in said.err
    assert "prepare: removed, making it again" in said.err
    assert not second["cached"]
    assert second["digest"] == first["digest"]
    assert toy("prepare")[1]["cached"]


def test_a_stored_artifact_inside_is_verified_too(toy):
    _, first, _ = toy("train")
    inner = Path(first["uri"], "rivals/floor")
    inner.mkdir(parents=True)
    (inner / "weights").write_text("1")
    manifest.write(inner, kind="toy.run", format_version=1, config=Toy())
    assert toy("train")[1]["cached"]
    (inner / "weights").write_text("2")
    _, again, said = toy("train")
    assert "rivals/floor/weights is damaged" in said.err
    assert not again["cached"]


def test_a_log_that_changes_while_it_is_read_is_refused(toy):
    code, record, said = toy("prepare", "say=grow")
    assert code == 2
    assert "prepare: the source changed while it was being read (sha256:" in said.err
    assert "nothing was kept, run again" in said.err
    assert not Path(record["uri"]).exists()


# --- What is broken off ----------------------------------------------------------------------


def test_an_interrupted_training_goes_on_in_its_place(toy):
    code, first, said = toy("train", "say=stop")
    assert code == 130
    assert "interrupted; to go on, run again: toy train" in said.err
    code, second, _ = toy("train")
    assert code == 0
    assert second["uri"] == first["uri"]
    assert not second["cached"]
    assert Path(second["uri"], "steps").read_text() == "11"
    assert toy("train")[1]["cached"]


def test_bad_input_leaves_nothing_but_the_record(toy):
    code, record, _ = toy("prepare", "say=bad")
    assert code == 2
    assert not record["cached"]
    assert [p for p in Path("kept/toy-prepare").iterdir()] == []


def test_what_a_killed_run_left_beside_is_swept_up(toy):
    _, record, _ = toy("prepare", "say=bad")
    uri = Path(record["uri"])
    for word in ("staging", "part"):
        (uri.parent / f".{uri.name}.{word}-0123").mkdir()
    other = uri.parent / ".another.staging-0123"
    other.mkdir()
    toy("prepare")
    assert sorted(p.name for p in uri.parent.iterdir()) == sorted([uri.name, other.name])


def test_of_two_at_once_the_second_is_told_who_writes(toy):
    code = (
        "import test_store as t; from rayrun.cli import main\n"
        "main('toy', t.VERBS, ['prepare', 'toy.yaml', '--set=say=sleep', '--store=kept'])"
    )
    roots = [str(Path(__file__).parent), str(Path(rayrun.__file__).parents[1])]
    first = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(roots)},
    )
    try:
        assert first.stdout is not None
        first.stdout.readline()
        key = store.key_of("toy", VERBS[0], load(Toy, "toy.yaml"), {})
        uri = key.place("kept", "toy", "prepare")
        with (
            pytest.raises(ConfigError, match=f"is being written by process {first.pid}"),
            storage.claim(uri),
        ):
            pass
        code, _, said = toy("prepare")
        assert code == 2
        assert f"is being written by process {first.pid}" in said.err
        assert "run again: the same result is then taken from the store" in said.err
        assert "--out" not in said.err.partition("(")[0] + said.err.rpartition(")")[2]
    finally:
        first.kill()
        first.wait()
    assert toy("prepare")[0] == 0  # a claim ends with its holder


# --- Where and how ---------------------------------------------------------------------------


def test_a_store_on_s3_works_alike(toy, bucket):
    code, first, _ = toy("prepare", kept=f"{bucket}/kept")
    assert code == 0
    assert first["uri"].startswith(f"{bucket}/kept/toy-prepare/")
    assert toy("prepare", kept=f"{bucket}/kept")[1]["cached"]
    local = toy("prepare")[1]
    assert (local["key"], local["digest"]) == (first["key"], first["digest"])
    storage.write_bytes(storage.join(first["uri"], "shard"), b"x")
    code, again, said = toy("prepare", kept=f"{bucket}/kept")
    assert "shard is truncated" in said.err
    assert not again["cached"]
    _, stopped, _ = toy("train", "say=stop", f"inputs.data={first['uri']}", kept=f"{bucket}/kept")
    _, run, _ = toy("train", f"inputs.data={local['uri']}", kept=f"{bucket}/kept")
    assert run["uri"] == stopped["uri"]
    assert storage.read_bytes(storage.join(run["uri"], "steps")) == b"11"


def test_a_dry_run_says_what_would_happen_and_of_what_the_key_is_made(toy):
    def dry(*sets):
        code, _, said = toy("prepare", *sets, more=("--dry-run",))
        assert code == 0
        return said.out

    assert "prepare would write to" in dry()
    assert not Path("kept").exists()
    _, record, _ = toy("prepare")
    said = dry()
    assert f"prepare would use what stands at {record['uri']}" in said
    for part in ("program", "versions", "reads", "torch"):
        assert f'"{part}"' in said
    Path(record["uri"], "shard").write_text("")
    assert "again (" in dry()
    assert Path(record["uri"]).exists()


def test_a_record_that_cannot_be_written_is_told_before_the_work(toy, capsys):
    Path("file").write_text("")
    code = main("toy", VERBS, ["prepare", "toy.yaml", "--store=kept", "--record", "file/r.json"])
    assert code == 2
    assert "a directory is needed, a file stands in the way" in capsys.readouterr().err
    assert not Path("kept").exists()


def test_a_record_of_a_call_without_a_store(toy):
    assert main("toy", VERBS, ["prepare", "toy.yaml", "--out", "o", "--record", "r.json"]) == 0
    record = json.loads(Path("r.json").read_text())
    assert record["uri"] == str(Path("o").absolute())
    assert (record["key"], record["cached"]) == ("", False)
    assert record["digest"] == manifest.content_of("o")


def test_store_and_out_exclude_each_other_and_need_a_verb_that_keeps(toy, capsys):
    for verb, given, says in (
        ("prepare", ["--out", "o", "--store", "s"], "not allowed with argument"),
        ("serve", ["--store", "s"], "unrecognized arguments: --store"),
    ):
        assert main("toy", VERBS, [verb, "toy.yaml", *given]) == 2
        assert says in capsys.readouterr().err


def test_an_input_that_is_not_there_is_told(toy):
    code, _, said = toy("train", "inputs.data=nowhere")
    assert code == 2
    assert "inputs.data: nowhere does not exist (there is no manifest.json)" in said.err


# --- The program -----------------------------------------------------------------------------


def program(home: Path) -> str:
    code = "from rayrun import store; print(store.program_digest('rayrun'))"
    env = os.environ | {"PYTHONPATH": str(home)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env=env, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_one_line_of_the_program_is_in_the_key_and_its_place_is_not(tmp_path):
    shutil.copytree(
        Path(rayrun.__file__).parent,
        tmp_path / "rayrun",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copytree(tmp_path / "rayrun", tmp_path / "moved" / "rayrun")
    before = program(tmp_path)
    assert program(tmp_path / "moved") == before
    changed = tmp_path / "rayrun/data/log.py"
    changed.write_text(changed.read_text() + "\n# one line more\n")
    assert program(tmp_path) != before
