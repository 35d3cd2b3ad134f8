"""Bad input, through the console entry: full disks, object stores, two writers.

Each test is one line of the list that the product promises; run with `-rP` to read the messages.
"""

import contextvars
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from rayrun import storage

from .bad_input import read
from .console import ROOT, SMOKE, contents, done, infnet

DISK = """
import contextlib, io, json, subprocess, sys
from pathlib import Path

from infnet.cli import main
from rayrun.ray.compute import LocalCompute
from rayrun.ray.session import session

disk, told = sys.argv[1], []
with session(LocalCompute(num_cpus=2, object_store_bytes=200_000_000)):
    for size, arguments in json.loads(sys.argv[2]):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        subprocess.run(mount, check=True)
        with contextlib.redirect_stderr(io.StringIO()) as err:
            code = main([*arguments, "--out", f"{disk}/out"])
        left = [p.relative_to(disk).as_posix() for p in Path(disk).rglob("*")]
        told.append({"code": code, "left": left, "err": err.getvalue()})
        subprocess.run(["umount", "-l", disk], check=True)
print("\\n" + json.dumps(told))
"""


def own_mounts() -> list[str]:
    """The command that gives a child a mount namespace of its own, in which it may mount."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        try_it = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if subprocess.run(try_it, capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("mounting a small disk needs root or user namespaces")


@pytest.mark.ray
@pytest.mark.slow
def test_a_full_disk_while_preparing_and_while_training(data, tmp_path):
    """Commands of one process, each with its output on a small disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    sets = ["--set", f"inputs.data={data}", "--set", "train.max_failures=0"]
    commands = [
        ("100k", ["prepare", str(SMOKE)]),
        ("160k", ["train", str(SMOKE), *sets]),
    ]
    found = subprocess.run(
        [*own_mounts(), sys.executable, "-c", DISK, str(disk), json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    for told in json.loads(found.stdout.splitlines()[-1]):
        assert told["code"] == 2, told["err"]
        read(told["err"], [str(disk), "full", "free some space or choose another --out"])
        assert told["left"] == []


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
