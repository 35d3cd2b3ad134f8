import contextlib
import contextvars
import errno
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rayrun import storage
from rayrun.config import ConfigError
from rayrun.storage import StorageError


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place on each kind of store."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def write(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def strays(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name.startswith("."))


# --- Files -----------------------------------------------------------------------------------


def test_what_is_written_is_read_back(root):
    uri = storage.join(root, "a", "b.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"\x00\xff")
    storage.write_bytes(uri, b"second")
    assert storage.exists(uri)
    assert storage.exists(storage.join(root, "a"))
    assert storage.read_bytes(uri) == b"second"
    assert storage.size(uri) == 6


def test_names_are_relative_sorted_and_recursive(root):
    for name in ("d/z.txt", "d/a/b.txt", "d/a.txt", "dd/no.txt"):
        storage.write_bytes(storage.join(root, name), b"")
    assert storage.names(storage.join(root, "d")) == ["a.txt", "a/b.txt", "z.txt"]


def test_text_is_written_and_read_as_utf_8(root):
    uri = storage.join(root, "x.txt")
    with storage.open(uri, "w") as f:
        f.write("点击\n")
    with storage.open(uri, "r") as f:
        assert f.read() == "点击\n"
    assert storage.read_bytes(uri) == "点击\n".encode()


def test_a_write_that_fails_leaves_what_was_there(root):
    uri = storage.join(root, "x.txt")
    storage.write_bytes(uri, b"before")

    class Stop(Exception):
        pass

    with pytest.raises(Stop), storage.open(uri, "w") as f:
        f.write("half")
        raise Stop
    assert storage.read_bytes(uri) == b"before"
    assert storage.names(root) == ["x.txt"]


def test_other_modes_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="mode must be one of rb, r, wb, w; found 'a'"),
        storage.open(tmp_path / "x", "a"),
    ):
        pass


def test_a_missing_place_is_one_line(root):
    missing = storage.join(root, "nothing")
    for ask in (storage.read_bytes, storage.names, storage.size, storage.content_digest):
        with pytest.raises(
            StorageError, match="nothing: there is no such file or directory.*check the"
        ) as caught:
            ask(missing)
        assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="there is no such file or directory"):
        storage.fetch(missing, Path(root) if "://" not in root else Path("/tmp"))


def test_a_file_is_no_directory_and_a_directory_no_file(tmp_path):
    write(tmp_path, d__x="1")
    with pytest.raises(StorageError, match="a directory is needed, a file stands in the way"):
        storage.names(tmp_path / "d/x")
    with pytest.raises(StorageError, match="a file is needed, found a directory"):
        storage.read_bytes(tmp_path / "d")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_one_may_not_write_is_named(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="permission denied; check who may"):
        storage.write_bytes(tmp_path / "shut/x", b"")


def test_joining_keeps_the_scheme():
    assert storage.join("s3://b/k/", "/x", "y") == "s3://b/k/x/y"
    assert storage.join("/", "x") == "/x"
    assert storage.join("a/b/", "c.txt") == "a/b/c.txt"
    assert storage.is_local("file:///x")
    assert not storage.is_local("s3://b")


def test_an_unknown_scheme_is_named():
    with pytest.raises(
        StorageError, match="the scheme zz:// cannot be used .*; use a path or s3://"
    ):
        storage.exists("zz://b/x")


def test_a_digest_depends_on_names_and_bytes_but_not_on_the_place(root, tmp_path):
    here = write(tmp_path / "here", a="1", d__b="2")
    storage.put(here, storage.join(root, "there"))
    assert storage.content_digest(here) == storage.content_digest(storage.join(root, "there"))
    first = storage.content_digest(here)
    (here / "a").rename(here / "c")
    assert storage.content_digest(here) != first
    (here / "c").rename(here / "a")
    (here / "d/b").write_text("3")
    assert storage.content_digest(here) != first


def test_the_digest_of_a_file_is_that_of_its_bytes(root):
    uri = storage.join(root, "x")
    storage.write_bytes(uri, b"1")
    assert storage.content_digest(uri) == (
        "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    )


def test_the_same_bytes_in_another_cut_give_another_digest(tmp_path):
    one, two = write(tmp_path / "1", ab="c"), write(tmp_path / "2", a="bc")
    assert storage.content_digest(one) != storage.content_digest(two)


# --- Directories -----------------------------------------------------------------------------


def test_a_local_place_is_fetched_without_a_copy(tmp_path):
    write(tmp_path, d__x="1")
    assert storage.fetch(str(tmp_path / "d"), tmp_path / "into") == tmp_path / "d"
    assert not (tmp_path / "into").exists()


def test_a_directory_and_a_file_are_fetched_from_s3(bucket, tmp_path):
    storage.put(write(tmp_path / "src", a="1", d__b="2"), bucket + "/art")
    found = storage.fetch(bucket + "/art", tmp_path / "into")
    assert storage.content_digest(found) == storage.content_digest(tmp_path / "src")
    assert storage.fetch(bucket + "/art/d/b", tmp_path / "into").read_text() == "2"
    assert sorted(p.name for p in (tmp_path / "into").iterdir()) == ["art", "b"]


def test_an_output_appears_whole_or_not_at_all(root, tmp_path):
    uri = storage.join(root, "runs/a")
    with storage.output(uri) as staging:
        write(staging, manifest="x", d__b="2")
        assert not storage.exists(uri)
    assert storage.names(uri) == ["d/b", "manifest"]

    uri = storage.join(root, "runs/b")
    with pytest.raises(ZeroDivisionError), storage.output(uri) as staging:
        write(staging, a="1")
        _ = 1 / 0
    assert not storage.exists(uri)
    assert not staging.exists()
    if storage.is_local(root):
        assert strays(Path(root) / "runs") == []


def test_a_failed_output_leaves_the_one_before(root):
    uri = storage.join(root, "out")
    with storage.output(uri) as staging:
        write(staging, **{"manifest.json": "{}", "old": "1"})
    with pytest.raises(KeyboardInterrupt), storage.output(uri) as staging:
        write(staging, new="1")
        raise KeyboardInterrupt
    assert storage.names(uri) == ["manifest.json", "old"]


def test_an_output_replaces_the_one_before_with_all_its_files(root):
    uri = storage.join(root, "out")
    for name in ("old", "new"):
        with storage.output(uri) as staging:
            write(staging, **{"manifest.json": "{}", name: "1"})
    assert storage.names(uri) == ["manifest.json", "new"]
    if storage.is_local(root):
        assert strays(Path(root)) == []


def test_a_local_reader_of_a_replaced_output_never_sees_a_mixture(tmp_path):
    uri, stop, seen = tmp_path / "out", threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                folder = os.open(uri, os.O_RDONLY)
                seen.add(tuple(sorted(os.listdir(folder))))
                os.close(folder)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        with storage.output(uri) as staging:
            write(staging, **{"manifest.json": "{}", f"a{turn % 2}": "", f"b{turn % 2}": ""})
    stop.set()
    reader.join()
    # An opened directory of before may be emptying (its files are being removed), never mixed.
    assert all(not ({"a0", "b0"} & set(s) and {"a1", "b1"} & set(s)) for s in seen)
    assert ("a0", "b0", "manifest.json") in seen


def test_a_link_to_an_output_stays_a_link(tmp_path):
    (tmp_path / "disk/out").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk/out")
    for name in ("old", "new"):
        with storage.claim(tmp_path / "out"), storage.output(tmp_path / "out") as staging:
            write(staging, **{"manifest.json": "{}", name: "1"})
            with (
                pytest.raises(ConfigError, match="is being written by"),
                contextlib.ExitStack() as stack,
            ):
                thread_claim(stack, tmp_path / "disk/out")
    assert (tmp_path / "out").is_symlink()
    assert storage.names(tmp_path / "disk/out") == ["manifest.json", "new"]
    assert strays(tmp_path) == strays(tmp_path / "disk") == []


def thread_claim(stack: contextlib.ExitStack, uri: Path) -> None:
    """Claims as another run would: without the context of this one."""
    contextvars.Context().run(stack.enter_context, storage.claim(uri))


def test_the_current_directory_may_be_an_output(tmp_path, monkeypatch):
    place = tmp_path / "here"
    place.mkdir()
    for _ in range(2):
        monkeypatch.chdir(place)
        with storage.output(".") as staging:
            write(staging, **{"manifest.json": "{}"})
    assert storage.names(place) == ["manifest.json"]
    assert strays(tmp_path) == []
    monkeypatch.chdir(tmp_path)


def test_a_directory_that_is_no_output_is_never_replaced(tmp_path):
    write(tmp_path / "photos", holiday="1")
    for _ in range(2):
        with (
            pytest.raises(
                StorageError,
                match=r"photos holds 1 entries \(such as 'holiday'\) and is no earlier output",
            ),
            storage.output(tmp_path / "photos"),
        ):
            pass
    with pytest.raises(StorageError, match="is no earlier output"):
        storage.put(write(tmp_path / "src", a="1"), str(tmp_path / "photos"))
    with (
        pytest.raises(StorageError, match="an output is a directory, a file stands there"),
        storage.output(tmp_path / "photos/holiday"),
    ):
        pass
    assert (tmp_path / "photos/holiday").read_text() == "1"


def test_the_manifest_comes_last_and_the_old_one_goes_first(bucket, tmp_path, monkeypatch):
    uri = bucket + "/out"
    storage.put(write(tmp_path / "1", **{"manifest.json": "1", "a": "1", "z": "1"}), uri)
    second = write(tmp_path / "2", **{"manifest.json": "2", "a": "2", "b": "2"})
    (second / "b").chmod(0)
    filesystem, _ = storage.remote(uri)
    order: list[str] = []
    put_file = filesystem.put_file

    def watch(local: str, remote: str) -> None:
        order.append(Path(remote).name)
        assert not storage.exists(uri + "/manifest.json")
        put_file(local, remote)

    monkeypatch.setattr(filesystem, "put_file", watch)
    (second / "b").chmod(0o600)
    storage.put(second, uri)
    assert order == ["a", "b", "manifest.json"]
    assert storage.names(uri) == ["a", "b", "manifest.json"]


def test_a_prefix_that_is_no_output_is_never_replaced(bucket, tmp_path):
    storage.write_bytes(bucket + "/photos/holiday", b"1")
    with pytest.raises(
        StorageError, match=r"photos holds 1 entries \(such as 'holiday'\) and is no earlier output"
    ):
        storage.put(write(tmp_path / "src", a="1"), bucket + "/photos")
    with (
        pytest.raises(StorageError, match="is no earlier output"),
        storage.output(bucket + "/photos"),
    ):
        pass
    with (
        pytest.raises(StorageError, match=r"an output needs a key in the bucket"),
        storage.output(bucket),
    ):
        pass
    assert storage.names(bucket) == ["photos/holiday"]


def test_an_upload_that_was_cut_off_may_be_done_again(bucket, tmp_path, monkeypatch):
    uri, source = (
        bucket + "/out",
        write(tmp_path / "src", **{"manifest.json": "1", "a": "1", "b": "1"}),
    )
    filesystem, _ = storage.remote(uri)
    put_file = filesystem.put_file

    def cut_off(local: str, remote: str) -> None:
        if remote.endswith("/b"):
            raise KeyboardInterrupt
        put_file(local, remote)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "put_file", cut_off)
        with pytest.raises(KeyboardInterrupt):
            storage.put(source, uri)
    assert storage.names(uri) == [".incomplete", "a"]
    storage.put(source, uri)
    assert storage.names(uri) == ["a", "b", "manifest.json"]


def test_arrow_reads_and_writes_every_store_and_its_file_system_pickles(root):
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri = storage.join(root, "t.parquet")
    table = pa.table({"a": [1, 2]})
    filesystem, path = storage.arrow_filesystem(uri)
    with storage.storage_errors(uri):
        pq.write_table(table, path, filesystem=filesystem)
        assert pq.read_table(path, filesystem=pickle.loads(pickle.dumps(filesystem))) == table


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


# --- Claims ----------------------------------------------------------------------------------

HOLD = """
import sys, time
from rayrun import storage
with storage.claim(sys.argv[1], lease_s=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_process_holds(uri, lease_s=120.0):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(uri), str(lease_s)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


def test_a_second_run_is_told_who_holds_the_output(root):
    uri = storage.join(root, "runs/a")
    with another_process_holds(uri) as holder:
        message = rf"runs/a is being written by process {holder.pid} on {re.escape(socket.gethostname())} since .*; wait until it ends, or give this run another --out"
        with pytest.raises(ConfigError, match=message), storage.claim(uri):
            pass
        with storage.claim(storage.join(root, "runs/b")):
            pass


def test_a_claim_is_free_again_when_its_block_ends(root):
    uri = storage.join(root, "out")
    for _ in range(2):
        with (
            storage.claim(uri),
            storage.claim(uri),
        ):  # nested within one run: the verb and its steps
            pass
    with pytest.raises(ZeroDivisionError), storage.claim(uri):
        _ = 1 / 0
    with storage.claim(uri):
        pass
    assert not storage.exists(uri)


def test_the_system_frees_a_local_claim_when_the_holder_is_killed(tmp_path):
    with another_process_holds(tmp_path / "out") as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with storage.claim(tmp_path / "out"):
            pass
    assert strays(tmp_path) == []


def test_a_claim_outlives_the_replacement_of_its_output(tmp_path):
    uri = tmp_path / "out"
    with storage.claim(uri):
        for _ in range(2):
            with storage.output(uri) as staging:
                write(staging, **{"manifest.json": "{}"})
        refused = subprocess.run(
            [sys.executable, "-c", HOLD, str(uri), "120"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert "is being written by process" in refused.stderr


def test_two_threads_do_not_share_a_claim(root):
    uri, told = storage.join(root, "out"), []

    def claim() -> None:
        try:
            with storage.claim(uri):
                told.append(None)
        except ConfigError as error:
            told.append(error)

    with storage.claim(uri):
        thread = threading.Thread(target=claim)
        thread.start()
        thread.join()
    assert "is being written by" in str(told[0])


def test_a_race_for_one_output_has_one_winner(tmp_path):
    uri = tmp_path / "out"
    holding, most, lock = [0], [0], threading.Lock()

    def run() -> None:
        for _ in range(200):
            with contextlib.suppress(ConfigError), storage.claim(uri):
                with lock:
                    holding[0] += 1
                    most[0] = max(most[0], holding[0])
                with lock:
                    holding[0] -= 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_an_s3_claim_is_renewed_by_its_holder_and_void_after_it_died(bucket):
    uri = bucket + "/out"
    with another_process_holds(uri, lease_s=3) as holder:
        time.sleep(4)  # longer than the lease: the holder has renewed it
        with (
            pytest.raises(ConfigError, match="is being written by process"),
            storage.claim(uri, lease_s=3),
        ):
            pass
        holder.kill()
        holder.wait()
        with (
            pytest.raises(ConfigError, match="is being written by process"),
            storage.claim(uri, lease_s=3),
        ):
            pass
        time.sleep(4)
        with storage.claim(uri, lease_s=3):
            pass


def test_a_run_whose_s3_claim_was_taken_over_is_told(bucket):
    uri = bucket + "/out"
    with (
        pytest.raises(ConfigError, match="was taken over by another run"),
        storage.claim(uri, lease_s=0.8),
    ):
        storage.write_bytes(bucket + "/.out.lock", b"{}")
        time.sleep(0.6)


def test_a_claim_needs_a_key_in_the_bucket(bucket):
    with (
        pytest.raises(
            ConfigError, match="cannot be claimed: an output is a path or s3://BUCKET/KEY"
        ),
        storage.claim(bucket),
    ):
        pass
