"""A real S3 server over a socket, for whoever stores something."""

import gc
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import pytest

# Several processes share few cores: more threads of one would spin while others work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every Ray that is started here takes this token; without one it writes one into the user's home.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Started in the background of a shell: our children would ignore Ctrl-C too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first: the processes of `make test` share the files, and one that
    began a long file last would be waited for.
    """
    slow = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection() -> None:
    """The millions of objects that are made now stay: nothing is gained by looking at each again."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def scratch() -> Iterator[str]:
    """A short temporary directory for one Ray: names of sockets end at 107 bytes."""
    folder = tempfile.mkdtemp(prefix="t", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def closed_port() -> int:
    return free_port()


class S3Server:
    """A moto server in its own process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def require_credentials(self, after: float) -> None:
        """From the `after`-th request on, refuse unknown credentials; infinity: take any."""
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth",
            data=str(after).encode(),
            headers={"Content-Type": "text/plain"},
            method="POST",
        )
        urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
    )
    try:
        until = time.monotonic() + 60
        while True:
            assert server.poll() is None, "the S3 server ended"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < until, "the S3 server does not answer"
                time.sleep(0.1)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """`s3://<a fresh bucket>` on the server, with the environment set for it."""
    import boto3

    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = f"test-{abs(hash(request.node.nodeid)):x}-{time.monotonic_ns():x}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
