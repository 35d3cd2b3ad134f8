"""A real head with token authentication, in processes of its own, and our command line beside it."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayrun.config import ConfigError
from rayrun.ray.job_client import Jobs

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    port: int
    folder: Path
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self, *words: str) -> list[str]:
        """Command lines of processes of this cluster that hold all the words."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"RAY_TMPDIR={self.folder}".encode() in (place / "environ").read_bytes()
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if ours and line and all(word in line for word in words):
                found.append(f"{place.name} {line}")
        return found


@pytest.fixture(scope="module")
def head(s3_server) -> Iterator[Head]:
    """A head that has the credentials of the S3 server; its clients have the token."""
    from tests.conftest import free_port

    folder = Path(tempfile.mkdtemp(prefix="jb"))  # short: sockets lie below it
    token = secrets.token_hex(16)
    environment = {
        **{n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "PYTEST_"))},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        "TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "OMP_NUM_THREADS": "1",
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    started = Head(free_port(), folder, environment)
    command = [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats"]
    command += [
        "--num-cpus=2",
        "--object-store-memory=200000000",
        f"--ray-client-server-port={free_port()}",
    ]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--port={free_port()}"]
    command += [f"--dashboard-port={started.port}", f"--dashboard-agent-listen-port={free_port()}"]
    log = (folder / "head.log").open("wb")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    patched = pytest.MonkeyPatch()
    patched.setenv("RAY_AUTH_TOKEN", token)
    try:
        until = time.monotonic() + 90
        while True:
            try:
                Jobs(started.address)
                break
            except ConfigError:
                time.sleep(0.5)
            assert process.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < until, "the head does not answer"
        yield started
    finally:
        patched.undo()
        process.terminate()
        while left := started.processes():
            for line in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.split()[0]), signal.SIGKILL)
            process.poll()
            time.sleep(0.1)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


class Client:
    """Our command line in a process of its own; its output as it comes."""

    def __init__(self, head: Head, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infnet.cli", *arguments],
            env=head.environment | {"PYTHONUNBUFFERED": "1"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said = ""

    def until(self, words: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return
        raise AssertionError(f"{words!r} was not said:\n{self.said}")

    def end(self) -> int:
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        return self.process.wait(timeout=60)
