"""`infnet serve` and `infnet deploy` from a shell: what they refuse, and how a server ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from infnet.cli import main
from infnet.serve.bundle import NOT_DIGESTED, Bundle
from rayrun import manifest
from tests.leftovers import assert_gone, processes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys, *arguments) -> str:
    """The one line of a command that ends by 2 with nothing started."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "READY" not in said.out
    return said.err


def damaged(copy):
    place = copy / "tables.safetensors"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)


def another_answer(copy):
    sample = json.loads((copy / "sample.json").read_bytes())
    task = next(iter(sample["answer"][0]))
    sample["answer"][0][task] += 0.01
    (copy / "sample.json").write_text(json.dumps(sample))
    seal(copy)


def newer(copy):
    seal(copy, format_version=99)


def seal(place, **changes):
    raw = manifest.read_raw(str(place))
    kept = {"kind": raw["kind"], "format_version": raw["format_version"]}
    manifest.write(str(place), **kept | changes, config=raw["config"], exclude=NOT_DIGESTED)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, "tables.safetensors is damaged: its SHA-256 is not the manifest's"),
        (another_answer, "does not reproduce its own sample"),
        (newer, "has format_version 99"),
    ],
)
def test_a_bundle_that_cannot_be_trusted_is_refused_before_anything_starts(
    capsys, copy, tmp_path, spoil, message
):
    spoil(copy)
    said = refused(capsys, "serve", copy, "--set", "serve.port=0", "--out", tmp_path / "out")
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_taken_port_is_refused_before_anything_starts(capsys, exported, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for more in ((), ("--dry-run",)):
            words = ("serve", exported, "--set", f"serve.port={port}", "--out", tmp_path / "o")
            said = refused(capsys, *words, *more)
            assert f"error: serve.port ({port}) is taken on 127.0.0.1" in said


def test_no_bundle_is_refused(capsys, trained_run, tmp_path):
    said = refused(capsys, "serve", trained_run, "--out", tmp_path / "out")
    assert "error: inputs.bundle is required: the output of `infnet export`" in said


def test_deploy_needs_a_ray_that_outlives_it(capsys, exported, tmp_path):
    said = refused(capsys, "deploy", exported, "--out", tmp_path / "out")
    assert "error: deploy needs a Ray that outlives it" in said
    assert "compute: {type: attached, address: HOST:PORT}" in said


def test_a_dry_run_says_what_would_be_served_and_where(capsys, exported, tmp_path):
    words = ["serve", str(exported), "--set", "serve.port=0", "--set", "serve.ingress=python"]
    assert main([*words, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for line in (
        f"model: {Bundle.open(str(exported)).digest}",
        "ingress: Serve's own proxy",
        "address: http://127.0.0.1:(any free port)/score",
        "answering 64 requests at a time with 128 waiting",
        "nothing was done (--dry-run)",
    ):
        assert line in said
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------
# The process


def serve(exported, scratch, out, *sets):
    """A server in a process of its own."""
    words = [
        word for one in ("serve.port=0", "compute.num_cpus=2", *sets) for word in ("--set", one)
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "infnet.cli", "serve", str(exported), *words, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": scratch},
        start_new_session=True,
    )


@pytest.mark.ray
@pytest.mark.parametrize(
    ("number", "ingress"), [(signal.SIGINT, "haproxy"), (signal.SIGTERM, "python")]
)
def test_a_server_that_is_told_to_stop_has_done_its_work_and_leaves_nothing(
    exported, scratch, tmp_path, number, ingress
):
    out = tmp_path / "out"
    child = serve(exported, scratch, out, f"serve.ingress={ingress}")
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("READY http://127.0.0.1:"), child.communicate()[1]
        url = line.split()[1]
        assert json.loads((out / "result.json").read_bytes())["details"]["url"] == url
        with urllib.request.urlopen(f"{url}/healthz", timeout=10) as response:
            assert json.load(response) == {
                "ready": True,
                "model": Bundle.open(str(exported)).digest,
            }
        # a terminal tells the whole group, a supervisor the program alone
        (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)
        said, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, err
    assert "serve: told to stop" in said
    assert err == ""
    assert_gone(scratch)


@pytest.mark.ray
def test_ctrl_c_before_it_answers_is_an_interruption_and_leaves_nothing(
    exported, scratch, tmp_path
):
    """While Ray starts."""
    child = serve(exported, scratch, tmp_path / "out")
    try:
        until = time.monotonic() + 60
        while not any("gcs_server" in line for line in processes(scratch)):
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGINT)
        said, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130, err
    assert "READY" not in said
    assert "Traceback" not in err
    assert "run again: infnet serve" in err
    assert not (tmp_path / "out").exists()
    assert_gone(scratch)
