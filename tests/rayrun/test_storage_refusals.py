"""Full disks, and object stores that do not answer or refuse."""

import errno
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from rayrun import storage
from rayrun.storage import StorageError
from tests.rayrun.folders import strays, write

# --- Full disks ------------------------------------------------------------------------------


def test_a_full_disk_is_one_error_with_sizes_and_leaves_nothing(tmp_path):
    uri = tmp_path / "runs/a"
    message = r"the disk of .* is full: 4.9 KiB were written, more is needed, [\d.]+ [KMGT]iB are free; free some"
    with pytest.raises(StorageError, match=message), storage.output(uri) as staging:
        write(staging, a="x" * 5000)
        with open("/dev/full", "wb") as device:  # writing there fails as on a full disk
            device.write(b"1" * 10)
    assert not uri.exists()
    assert strays(uri.parent) == []


def test_arrow_s_own_error_of_a_full_disk_is_understood(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        pytest.raises(StorageError, match="is full"),
        storage.output(tmp_path / "a") as staging,
    ):
        # A link, for Arrow removes what it failed to write.
        (staging / "part.parquet").symlink_to("/dev/full")
        pq.write_table(pa.table({"a": list(range(100_000))}), staging / "part.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_a_task_of_ray_is_understood(tmp_path):
    from ray.exceptions import RayTaskError

    behind = OSError(errno.ENOSPC, "No space left on device")
    error = RayTaskError("work", "traceback", behind).as_instanceof_cause()
    assert storage.is_disk_full(error)
    assert storage.is_disk_full(RuntimeError("x")) is False


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_keeps_what_was_there(small_disk, tmp_path):
    storage.write_bytes(small_disk / "x", b"before")
    with pytest.raises(
        StorageError, match=r"the disk is full: at least 2.0 MiB are needed, [\d.]+ KiB are free"
    ):
        storage.write_bytes(small_disk / "x", b"1" * (2 << 20))
    assert (small_disk / "x").read_bytes() == b"before"
    with (
        pytest.raises(StorageError, match="the disk is full"),
        storage.open(small_disk / "y", "wb") as f,
    ):
        f.write(b"1" * (2 << 20))
    assert os.listdir(small_disk) == ["x"]
    with pytest.raises(StorageError, match=r"2.0 MiB are needed, [\d.]+ KiB are free"):
        storage.put(write(tmp_path / "big", a="1" * (2 << 20)), str(small_disk / "art"))
    with (
        pytest.raises(StorageError, match="were written, more is needed"),
        storage.output(small_disk / "art") as staging,
    ):
        (staging / "a").write_bytes(b"1" * (2 << 20))
    assert os.listdir(small_disk) == ["x"]


# --- Object stores that do not answer or refuse ----------------------------------------------

ASKING = {
    "exists": lambda uri: storage.exists(uri),
    "names": lambda uri: storage.names(uri),
    "read_bytes": lambda uri: storage.read_bytes(uri),
    "write_bytes": lambda uri: storage.write_bytes(uri, b"1"),
    "size": lambda uri: storage.size(uri),
    "fetch": lambda uri: storage.fetch(uri, Path("/tmp/never")),
    "content_digest": lambda uri: storage.content_digest(uri),
    "claim": lambda uri: storage.claim(uri).__enter__(),
}


@pytest.mark.parametrize("ask", ASKING)
def test_a_closed_port_is_one_line_in_a_few_seconds(ask, bucket, closed_port, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    started = time.monotonic()
    with pytest.raises(
        StorageError, match="cannot be reached .*; check AWS_ENDPOINT_URL and the network"
    ) as caught:
        ASKING[ask](bucket + "/x")
    assert time.monotonic() - started < 15
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up_in_15_seconds(bucket, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StorageError, match="cannot be reached .*Read timeout"):
            storage.exists(bucket + "/x")
        assert time.monotonic() - started < 15


def test_an_unknown_host_is_one_line(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no.such.host.invalid:9000")
    with pytest.raises(StorageError, match=r"no\.such\.host\.invalid:9000 cannot be reached"):
        storage.exists(bucket + "/x")


@pytest.mark.parametrize("ask", ASKING)
def test_wrong_credentials_are_one_line_without_the_secret(ask, bucket, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    s3_server.require_credentials(after=0)
    try:
        with pytest.raises(
            StorageError, match="refused the credentials .*check AWS_ACCESS_KEY_ID"
        ) as caught:
            ASKING[ask](bucket + "/x")
    finally:
        s3_server.require_credentials(after=float("inf"))
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_missing_credentials_are_one_line(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(
        StorageError, match=r"refused the credentials \(Unable to locate credentials\)"
    ):
        storage.exists(bucket + "/x")


def test_a_missing_bucket_is_named(bucket):
    for ask in ("names", "read_bytes", "write_bytes", "claim"):
        with pytest.raises(
            StorageError, match="(there is no bucket 'no-such-bucket'|no such file or directory)"
        ):
            ASKING[ask]("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'"):
        storage.write_bytes("s3://no-such-bucket/x", b"")
