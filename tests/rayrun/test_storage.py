"""Files on every kind of store: read, write, names, digests."""

import os
from pathlib import Path

import pytest

from rayrun import storage
from rayrun.storage import StorageError
from tests.rayrun.folders import write


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
