"""Taking the place of what stood there before: by renaming, and never of what is not ours."""

import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayrun.object_store import (
    StorageError,
    free_bytes,
    human,
    local_path,
    remote,
    storage_errors,
)

MANIFEST = "manifest.json"
RESULT = "result.json"
INCOMPLETE = ".incomplete"
"""Stands in a directory on an object store while it is being uploaded."""


def check_room(path: Path, needed: int) -> None:
    """Raise `StorageError` if the disk of `path` has not `needed` bytes left."""
    free = free_bytes(path)
    if needed > free:
        raise StorageError(
            f"{path}: the disk is full: {human(needed)} are needed, {human(free)} are free; "
            "free some space or choose another --out"
        )


def refuse_strangers(uri: str | os.PathLike[str]) -> None:
    """Raise `StorageError` if what stands at `uri` is no earlier output.

    `--out .` or `--out ~` must not replace somebody's directory.
    """
    path = local_path(uri)
    if path is not None:
        if path.exists() and not path.is_dir():
            raise StorageError(f"{path}: an output is a directory, a file stands there")
        found = {p.name for p in path.iterdir()} if path.exists() else set[str]()
    else:
        with storage_errors(uri):
            filesystem, key = remote(uri)
            if "/" not in key:
                raise StorageError(f"{uri}: an output needs a key in the bucket (s3://BUCKET/KEY)")
            listed: list[str] = filesystem.ls(key, detail=False) if filesystem.isdir(key) else []
            found = {str(name).rstrip("/").rpartition("/")[2] for name in listed}
    if found and not found & {MANIFEST, RESULT, INCOMPLETE}:
        raise StorageError(
            f"{uri} holds {len(found)} entries (such as {min(found)!r}) and is no earlier output "
            f"(no {MANIFEST}); choose another --out or empty it"
        )


def sibling(path: Path, word: str) -> Path:
    """A fresh hidden name beside `path`, on the same disk."""
    path = path.resolve()
    return path.parent / f".{path.name}.{word}-{uuid.uuid4().hex[:12]}"


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A sibling path (not made) that takes the place of `path`, file or directory, at the end."""
    path = path.resolve()  # through a link, and `.` by its name
    temporary = sibling(path, "part")
    try:
        yield temporary
        take_place(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


def take_place(temporary: Path, path: Path) -> None:
    """Rename `temporary`, file or directory, to `path`, replacing what is there."""
    if not path.is_dir():
        temporary.replace(path)
        return
    # A directory with content cannot be renamed over; the old one steps aside first.
    path = path.resolve()
    old = sibling(path, "old")
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
