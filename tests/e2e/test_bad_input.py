"""Bad input, through the console entry: exit code 2, one readable message, nothing half-written.

Each test is one line of the list that the product promises; run with `-rP` to read the messages.
"""

import contextvars
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayrun import storage

from .console import ROOT, SMOKE, contents, done, infnet

CSV = """
name: csv
data:
  source: {{path: {path}, columns: {{user: user, item: item, time: {{column: time, unit: iso}}}}}}
  split: {{type: time, valid_from: "2024-01-09", test_from: "2024-01-10"}}
tasks: {{click: {{type: binary, label: click}}}}
features: {{item: {{type: categorical, column: item, dim: 8}}}}
model: {{type: floor}}
compute: {{type: local, num_cpus: 2}}
"""


@pytest.fixture
def refused(tmp_path, caplog):
    """Runs a command that must be refused; nothing may be left where it would have written."""

    def run(*arguments: object, says: list[str], out: str | Path = "") -> str:
        place = out or tmp_path / "out" / "run"
        found = infnet(*arguments, "--out", place)
        assert found.code == 2, found.err
        message = read(found.err, says)
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
        if not out:
            assert not place.parent.exists() or contents(place.parent) == {}
        return message

    return run


def read(err: str, says: list[str]) -> str:
    """The one error in what a command said, which holds all that it must say."""
    assert "Traceback" not in err
    assert err.count("error: ") == 1
    message = "error: " + err.partition("error: ")[2]
    assert "Failed to apply" not in message, "advice of Ray Data"
    print(message)
    assert message.count("\n") <= 12, "too long to be read"
    for part in says:
        assert part in message
    return message


def log_of(folder: Path, *rows: str) -> Path:
    """A configuration of a CSV log with these rows."""
    path = folder / "log.csv"
    path.write_text("\n".join(["user,item,time,click", *rows]) + "\n")
    described = folder / "log.yaml"
    described.write_text(CSV.format(path=path))
    return described


def row(number: int, time: str | None = None) -> str:
    moment = time or f"2024-01-{1 + number // 10:02d}T{number % 24:02d}:00:00"
    return f"u{number % 7},i{number % 5},{moment},{number % 2}"


def damaged(directory: Path, to: Path, file: str, *, cut: int = 0, at: int = 0) -> Path:
    """A copy of an output with one file cut short, or with one bit of it turned round."""
    shutil.copytree(directory, to)
    content = bytearray((to / file).read_bytes())
    if not cut:
        content[at or len(content) // 2] ^= 1
    (to / file).write_bytes(bytes(content[: len(content) - cut]))
    return to


# --- Configuration ---------------------------------------------------------------------------


def test_an_unknown_config_key(refused, tmp_path):
    file = tmp_path / "typo.yaml"
    file.write_text(SMOKE.read_text().replace("epochs: 2", "epochss: 2"))
    for verb in ("prepare", "train"):
        says = [f"{file} is not a valid InfnetConfig", "train.epochss", "did you mean 'epochs'?"]
        refused(verb, file, says=says)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs=many", ["train.epochs", "valid integer", "found 'many'"]),
        ("train.epochs=true", ["train.epochs", "valid integer", "found True"]),
        ("train.epochs=1.5", ["train.epochs", "valid integer", "found 1.5"]),
        ("model=infnet", ["model", "found 'infnet'"]),
        ("features.user.type=categoric", ["features.user", "'categoric'", "did you mean 'categorical'?"]),
        ("compute.workers=2", ["train.strategy", "single is one worker", "2", "use ddp or deepspeed"]),
        ("train.batch_size=250", ["batch_size (250)", "multiple of", "nearest is 248"]),
    ],
)  # fmt: skip
def test_a_wrong_type_or_value(refused, override, says):
    refused("train", SMOKE, "--set", override, says=says)


# --- The log ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("features.user.column=usr_id", ["'usr_id'", "features.user", "nearest is 'user_id'"]),
        ("tasks.click.label=is_clik", ["'is_clik'", "tasks.click", "nearest is 'is_click'"]),
        ("data.split={type: column, column: part}", ["data.split.column", "'part'", "is_click"]),
        ("features.duration.column=p_click", ["features.duration", "'p_click'", "holds the answer"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_a_missing_column(refused, verb, override, says):
    refused(verb, SMOKE, "--set", override, says=says)


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_missing_column_of_a_file_to_score(refused, run, test_log, tmp_path, verb):
    file = tmp_path / "rows.parquet"
    pq.write_table(test_log.drop_columns(["topic"]), file)
    refused(verb, run, "--data", file, says=[str(file), "'topic'", "Columns there: user_id"])


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_an_empty_log(refused, tmp_path, verb):
    config = log_of(tmp_path)
    refused(verb, config, says=[str(tmp_path / "log.csv"), "empty", "at least one row"])
    (tmp_path / "log.csv").write_bytes(b"")
    refused(verb, config, says=[str(tmp_path / "log.csv"), "empty"])
    (tmp_path / "log.csv").unlink()
    refused(verb, config, says=[str(tmp_path / "log.csv")])


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_an_empty_file_to_score(refused, run, test_log, tmp_path, verb):
    file = tmp_path / "rows.parquet"
    pq.write_table(test_log.slice(0, 0), file)
    refused(verb, run, "--data", file, says=[str(file), "empty"])


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_bad_rows_above_the_share(refused, ray_session, tmp_path, verb):
    rows = [row(n, "yesterday" if n % 10 == 3 else None) for n in range(100)]
    says = ["10 of 100 rows (10.0%)", "data.max_bad_share (1.0%)", "log.csv", "yesterday", "raise"]
    refused(verb, log_of(tmp_path, *rows), says=says)


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_bad_rows_of_a_file_above_the_share(refused, run, test_log, tmp_path, verb):
    users = test_log["user_id"].to_pylist()
    users[::10] = [None] * len(users[::10])
    column = test_log.column_names.index("user_id")
    bad = test_log.set_column(column, "user_id", [users])
    pq.write_table(bad, tmp_path / "rows.parquet")
    says = ["58 of 571 rows", "data.max_bad_share (0.01)", "user_id", "raise data.max_bad_share"]
    refused(verb, run, "--data", tmp_path / "rows.parquet", says=says)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.split.valid_from=2022-04-21", ["data.split", "2022-04-21", "before test_from (2022-04-20)", "overlap"]),
        ("data.split.valid_from=2022-04-20", ["data.split", "valid_from (2022-04-20)", "overlap"]),
        ("data.split={type: hash, column: user_id, valid: 0.5, test: 0.5}", ["data.split", "valid (0.5)", "below 1"]),
        ("data.split.valid_from=soon", ["data.split.valid_from", "ISO date", "'soon'"]),
    ],
)  # fmt: skip
def test_an_overlapping_split(refused, override, says):
    refused("prepare", SMOKE, "--set", override, says=says)


@pytest.mark.ray
def test_a_split_with_an_empty_part(refused, ray_session, tmp_path):
    rows = [row(n) for n in range(70)]
    says = [
        "data.split leaves valid and test empty",
        "2024-01-07",
        'valid_from: "2024-01-09"',
        "move the cuts",
    ]
    refused("prepare", log_of(tmp_path, *rows), says=says)


# --- Damaged artifacts -----------------------------------------------------------------------


@pytest.mark.ray
def test_a_corrupt_parquet_shard(refused, data, run, tmp_path):
    name = "train/part-00000.parquet"
    at_rest = damaged(data, tmp_path / "data", name)
    says = [f"{at_rest}/{name}", "damaged", "SHA-256", "make the artifact again"]
    refused("train", SMOKE, "--set", f"inputs.data={at_rest}", says=says)

    name = "test/part-00000.parquet"
    at_rest = damaged(data, tmp_path / "cut", name, cut=1000)
    says = [f"{at_rest}/{name}", "truncated", "bytes, the manifest says"]
    refused("evaluate", run, "--set", f"inputs.data={at_rest}", says=says)


@pytest.mark.ray
@pytest.mark.parametrize("cut", [0, 1000])
def test_a_corrupt_parquet_log(refused, ray_session, log, tmp_path, cut):
    (tmp_path / "whole").mkdir()
    file = tmp_path / "whole" / "log.parquet"
    pq.write_table(log, file, write_page_checksum=True)
    users = pq.read_metadata(file).row_group(0).column(0)
    inside = users.data_page_offset + users.total_compressed_size // 2
    folder = damaged(file.parent, tmp_path / "log", file.name, cut=cut, at=inside)
    source = f"data.source={{path: {folder}, columns: {{user: user_id, item: video_id, time: {{column: time_ms, unit: ms}}}}}}"
    refused("prepare", SMOKE, "--set", source, says=[f"{folder}/log.parquet"])


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
@pytest.mark.parametrize("name", ["network.safetensors", "tables.safetensors"])
def test_a_truncated_checkpoint(refused, run, test_rows, tmp_path, verb, name):
    broken = damaged(run, tmp_path / "broken", f"checkpoint/{name}", cut=100)
    says = [f"{broken}/checkpoint/{name}", "truncated", "bytes, the manifest says", "again"]
    refused(verb, broken, "--data", test_rows, says=says)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("rivals/floor/checkpoint/network.safetensors", "truncated"),
        ("checkpoint/manifest.json", "damaged"),
        ("manifest.json", "damaged"),
        ("schema.json", "damaged"),
        ("encoder/encoder.json", "damaged"),
        ("encoder/vocabularies/user.parquet", ""),
        ("encoder/statistics/user_click_rate.parquet", ""),
    ],
)
def test_a_truncated_file_of_a_run(refused, run, test_rows, tmp_path, file, says):
    broken = damaged(run, tmp_path / "broken", file, cut=10)
    refused("evaluate", broken, "--data", test_rows, says=[f"{broken}/{file}", says, "again"])


@pytest.mark.ray
def test_the_schema_of_another_dataset(refused, data, other_data, run, test_rows, tmp_path):
    says = [f"{other_data} was prepared with encoder", "schema of another dataset", "inputs.data"]
    refused("evaluate", run, "--set", f"inputs.data={other_data}", says=says)

    before = contents(run)
    says = [f"{run} holds a run on the data with digest", "inputs.data", "choose another --out"]
    refused("train", SMOKE, "--set", f"inputs.data={other_data}", says=says, out=run)
    assert contents(run) == before

    mixed = tmp_path / "schema"
    shutil.copytree(run, mixed)
    shutil.copy(other_data / "schema.json", mixed)
    says = [f"checkpoint in {mixed}", f"{mixed}/schema.json", "schema of another dataset", "again"]
    refused("evaluate", mixed, says=says)

    mixed = tmp_path / "encoder"
    shutil.copytree(run, mixed)
    shutil.rmtree(mixed / "encoder")
    shutil.copytree(other_data / "encoder", mixed / "encoder")
    for verb in ("evaluate", "predict"):
        says = [str(mixed), "encoder", "another dataset"]
        refused(verb, mixed, "--data", test_rows, says=says)


NEWER = [
    ("data", "manifest.json", "train"),
    ("data", "schema.json", "train"),
    ("data", "manifest.json", "evaluate"),
    ("run", "manifest.json", "evaluate"),
    ("run", "manifest.json", "predict"),
    ("run", "checkpoint/manifest.json", "predict"),
    ("run", "schema.json", "evaluate"),
    ("run", "encoder/encoder.json", "predict"),
    ("run", "rivals/floor/checkpoint/manifest.json", "evaluate"),
    ("run", "manifest.json", "train"),
]


@pytest.mark.ray
@pytest.mark.parametrize(("what", "file", "verb"), NEWER)
def test_a_newer_format_version(refused, data, run, test_rows, tmp_path, what, file, verb):
    newer = tmp_path / "newer"
    shutil.copytree({"data": data, "run": run}[what], newer)
    content = json.loads((newer / file).read_text())
    content["format_version"] = 2
    if "versions" in content:
        content["versions"]["infnet-ray"] = "0.9.0"
    (newer / file).write_text(json.dumps(content))
    arguments = {
        ("data", "train"): ("train", SMOKE, "--set", f"inputs.data={newer}"),
        ("data", "evaluate"): ("evaluate", run, "--set", f"inputs.data={newer}"),
        ("run", "evaluate"): ("evaluate", newer),
        ("run", "predict"): ("predict", newer, "--data", test_rows),
        ("run", "train"): ("train", SMOKE, "--set", f"inputs.data={data}"),
    }[what, verb]
    before = contents(newer)
    out = newer if (what, verb) == ("run", "train") else ""
    message = refused(*arguments, says=[str(newer), "format_version 2", "reads up to 1"], out=out)
    assert ("infnet-ray>=0.9.0" if "versions" in content else "upgrade infnet-ray") in message
    assert contents(newer) == before


# --- Places ----------------------------------------------------------------------------------

DISK = """
import json, os, subprocess, sys
from pathlib import Path

disk, size, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
from infnet.cli import main

code = main([*arguments, "--out", f"{disk}/out"])
left = [p.relative_to(disk).as_posix() for p in Path(disk).rglob("*")]
print("\\n" + json.dumps({"code": code, "left": left}))
"""


def own_mounts() -> list[str]:
    """The command that gives a child a mount namespace of its own, in which it may mount."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        try_it = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if subprocess.run(try_it, capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("mounting a small disk needs root or user namespaces")


def on_full_disk(folder: Path, size: str, *arguments: object) -> tuple[str, list[str]]:
    """The error of a command whose output lies on a disk of `size`, and what it left there."""
    (folder / "disk").mkdir()
    command = [*own_mounts(), sys.executable, "-c", DISK, folder / "disk", size, *arguments]
    found = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["code"] == 2, found.stderr
    return found.stderr, told["left"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_full_disk_while_preparing(tmp_path):
    err, left = on_full_disk(tmp_path, "100k", "prepare", SMOKE)
    read(err, [f"{tmp_path}/disk", "full", "free some space or choose another --out"])
    assert left == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_full_disk_while_training(data, tmp_path):
    sets = ("--set", f"inputs.data={data}", "--set", "train.max_failures=0")
    err, left = on_full_disk(tmp_path, "160k", "train", SMOKE, *sets)
    read(err, [f"{tmp_path}/disk", "full", "free some space or choose another --out"])
    assert left == []


@pytest.fixture
def nowhere(closed_port, monkeypatch):
    """The environment of an S3 server that does not answer."""
    url = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    return url


S3_USES = {
    "output of prepare": ("prepare", SMOKE, "--out", "{s3}/out"),
    "output of train": ("train", SMOKE, "--out", "{s3}/out"),
    "source of prepare": ("prepare", SMOKE, "--set", "data.source={{path: {s3}/log, columns: {{user: user_id}}}}"),
    "data of train": ("train", SMOKE, "--set", "inputs.data={s3}/data"),
    "run of evaluate": ("evaluate", "{s3}/run"),
    "configuration": ("train", "{s3}/config.yaml"),
}  # fmt: skip


def use(name: str, bucket: str, tmp_path: Path) -> list[str]:
    arguments = [str(part).format(s3=bucket) for part in S3_USES[name]]
    return arguments if "--out" in arguments else [*arguments, "--out", str(tmp_path / "out")]


@pytest.mark.parametrize("name", S3_USES)
def test_s3_unreachable(nowhere, tmp_path, name):
    started = time.monotonic()
    found = infnet(*use(name, "s3://bucket", tmp_path))
    assert found.code == 2, found.err
    says = ["s3://bucket", nowhere, "cannot be reached", "check AWS_ENDPOINT_URL"]
    read(found.err, says)
    assert time.monotonic() - started < 30
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", S3_USES)
def test_wrong_credentials(bucket, s3_server, monkeypatch, tmp_path, name):
    """A server that checks them: the key and the secret are unknown to it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    s3_server.require_credentials(after=0)
    try:
        found = infnet(*use(name, bucket, tmp_path))
    finally:
        s3_server.require_credentials(after=float("inf"))
    assert found.code == 2, found.err
    message = read(
        found.err, [bucket, s3_server.url, "refused the credentials", "AWS_ACCESS_KEY_ID"]
    )
    assert "not-the-secret" not in message
    assert contents(tmp_path) == {}


def test_two_runs_writing_the_same_directory(refused, tmp_path):
    """The first is a real one; it is told to stop afterwards, and leaves nothing either."""
    out = tmp_path / "out" / "run"
    command = [sys.executable, "-m", "infnet.cli", "prepare", SMOKE, "--out", out]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not (out.parent / ".run.lock").exists():
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        for verb in ("prepare", "train"):
            says = [f"{out} is being written by process {first.pid}", "prepare", "another --out"]
            refused(verb, SMOKE, says=says, out=out)
        first.send_signal(signal.SIGTERM)
        _, err = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 130, err
    assert "run again: infnet prepare" in err
    assert contents(out.parent) == {}
    done("prepare", SMOKE, "--out", out, "--dry-run")


def test_two_runs_writing_the_same_directory_on_s3(refused, bucket):
    out = f"{bucket}/runs/run"
    first, claimed = contextvars.copy_context(), ExitStack()  # as another process would hold it
    first.run(claimed.enter_context, storage.claim(out))
    try:
        says = [f"{out} is being written by process {os.getpid()}", "another --out"]
        refused("prepare", SMOKE, says=says, out=out)
    finally:
        first.run(claimed.close)
    assert not storage.exists(f"{bucket}/runs")
