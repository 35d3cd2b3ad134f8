"""Directories: an output appears whole or not at all, and replaces only an output."""

import contextlib
import contextvars
import os
import pickle
import threading
from pathlib import Path

import pytest

from rayrun import storage
from rayrun.config import ConfigError
from rayrun.storage import StorageError
from tests.rayrun.folders import strays, write


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
