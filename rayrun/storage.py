"""One URI type for all data: a path or `s3://…`. Readers never see half of anything.

    with storage.claim(out), storage.output(out) as staging:
        ...                      # write into the local directory `staging`
    # now, and only now, `out` exists, whole

Every failure that a person can mend is a `StorageError` of one line.
"""

import builtins
import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rayrun.claim import claim
from rayrun.object_store import (
    StorageError,
    absolute,
    check_bucket,
    delete,
    explain,
    free_bytes,
    human,
    is_disk_full,
    local_path,
    remote,
    storage_errors,
)
from rayrun.replacing import (
    MANIFEST,
    check_room,
    refuse_strangers,
    replacing,
    sibling,
    take_place,
)
from rayrun.upload import refuse_incomplete, refuse_unless_whole, upload

__all__ = [
    "StorageError",
    "absolute",
    "arrow_filesystem",
    "check_bucket",
    "claim",
    "content_digest",
    "exists",
    "explain",
    "fetch",
    "file_digest",
    "free_bytes",
    "human",
    "is_disk_full",
    "is_local",
    "join",
    "local_path",
    "names",
    "open",
    "output",
    "put",
    "read_bytes",
    "read_range",
    "refuse_incomplete",
    "remove",
    "size",
    "storage_errors",
    "write_bytes",
]

Uri = str | os.PathLike[str]


def is_local(uri: Uri) -> bool:
    """Whether `uri` is on this machine's file system."""
    return local_path(uri) is not None


def join(uri: Uri, *parts: str) -> str:
    """`uri` with path parts appended."""
    return "/".join([os.fspath(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: Uri) -> bool:
    """Whether there is a file or a directory at `uri`.

    Raises:
        StorageError: the place cannot be asked (unreachable, refused).
    """
    path = local_path(uri)
    with storage_errors(uri):
        if path is not None:
            return path.exists()
        filesystem, key = remote(uri)
        return bool(filesystem.exists(key))


def names(uri: Uri) -> list[str]:
    """Names of all files below the directory `uri`, relative to it, sorted.

    Raises:
        StorageError: there is no directory at `uri`.
    """
    path = local_path(uri)
    with storage_errors(uri):
        if path is not None:
            if not path.is_dir():
                raise NotADirectoryError(path) if path.exists() else FileNotFoundError(path)
            return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        filesystem, key = remote(uri)
        found = [str(name) for name in filesystem.find(key)]
        if not found or found == [key]:
            raise FileNotFoundError(key)
        return sorted(name.removeprefix(key + "/") for name in found if not name.endswith("/"))


def size(uri: Uri) -> int:
    """Bytes of one file.

    Raises:
        StorageError: missing, unreachable or refused.
    """
    path = local_path(uri)
    with storage_errors(uri):
        if path is not None:
            return path.stat().st_size
        filesystem, key = remote(uri)
        return int(filesystem.size(key))


def read_bytes(uri: Uri) -> bytes:
    """The whole content of one file.

    Raises:
        StorageError: missing, unreachable or refused.
    """
    path = local_path(uri)
    with storage_errors(uri):
        if path is not None:
            return path.read_bytes()
        filesystem, key = remote(uri)
        return bytes(filesystem.cat_file(key))


def read_range(uri: Uri, start: int, count: int) -> bytes:
    """`count` bytes of one file from position `start` on; fewer where the file ends before.

    Raises:
        StorageError: missing, unreachable or refused.
    """
    path = local_path(uri)
    with storage_errors(uri):
        if count == 0:
            return b""
        if path is not None:
            with builtins.open(path, "rb") as f:
                f.seek(start)
                return f.read(count)
        filesystem, key = remote(uri)
        return bytes(filesystem.cat_file(key, start=start, end=start + count))


def write_bytes(uri: Uri, data: bytes) -> None:
    """Write one file atomically; parents are made.

    Raises:
        StorageError: full, unreachable or refused; what stood there before stands there still.
    """
    path = local_path(uri)
    with storage_errors(uri, needed=len(data)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(data)
            return
        filesystem, key = remote(uri)
        filesystem.pipe_file(key, data)


@contextmanager
def open(uri: Uri, mode: str = "rb") -> Generator[IO[Any]]:
    """Open one file for reading (`rb`, `r`) or writing (`wb`, `w`); text is UTF-8.

    What is written appears when the block ends, whole; if the block fails, nothing changes.

    Raises:
        ValueError: another mode.
        StorageError: missing, full, unreachable or refused.
    """
    if mode not in ("rb", "r", "wb", "w"):
        raise ValueError(f"mode must be one of rb, r, wb, w; found {mode!r}")
    encoding = None if "b" in mode else "utf-8"
    path = local_path(uri)
    with storage_errors(uri):
        if mode.startswith("w"):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with (
                    replacing(path) as temporary,
                    builtins.open(temporary, mode, encoding=encoding) as f,
                ):
                    yield f
                return
            with tempfile.TemporaryDirectory(prefix="rayrun-") as folder:
                temporary = Path(folder) / "file"
                with builtins.open(temporary, mode, encoding=encoding) as f:
                    yield f
                filesystem, key = remote(uri)
                filesystem.put_file(str(temporary), key)
            return
        if path is not None:
            with builtins.open(path, mode, encoding=encoding) as f:
                yield f
            return
        filesystem, key = remote(uri)
        with filesystem.open(key, mode, **({"encoding": encoding} if encoding else {})) as f:
            yield f


def fetch(uri: Uri, into: Path) -> Path:
    """A local path with the content of `uri`, file or directory: itself if local, else a copy.

    Raises:
        StorageError: missing, full, unreachable or refused; or an upload of the directory to an
            object store has not ended.
    """
    path = local_path(uri)
    if path is not None:
        with storage_errors(uri):
            path.stat()
        return path
    filesystem, key = remote(uri)
    target = into / key.rpartition("/")[2]
    with storage_errors(uri):
        sizes: dict[str, Any] = filesystem.find(key, detail=True)
        files = {name: int(info["size"]) for name, info in sizes.items() if name[-1] != "/"}
        if not files:
            raise FileNotFoundError(key)
        refuse_unless_whole(uri, files, key)
    into.mkdir(parents=True, exist_ok=True)
    check_room(into, sum(files.values()))
    with storage_errors(into, needed=sum(files.values())), replacing(target) as temporary:
        for name in sorted(files):
            here = temporary if name == key else temporary / name.removeprefix(key + "/")
            here.parent.mkdir(parents=True, exist_ok=True)
            with storage_errors(f"{os.fspath(uri).partition('://')[0]}://{name}"):
                filesystem.get_file(name, str(here))
    return target


def put(local_dir: Path, uri: Uri) -> None:
    """Make `uri` a copy of a local directory, replacing what was there.

    A local `uri` appears by one rename. On an object store the old manifest goes first and the new
    one comes last, so that a directory with a manifest is whole; objects of before are removed. In
    between an object `.incomplete` stands there.

    Raises:
        StorageError: full, unreachable or refused, or what stands there is no earlier output.
    """
    files = names(local_dir)
    path = local_path(uri)
    refuse_strangers(uri)
    if path is not None:
        needed = sum((local_dir / name).stat().st_size for name in files)
        check_room(path, needed)
        with storage_errors(uri, needed=needed):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                shutil.copytree(local_dir, temporary)
        return
    upload(local_dir, files, uri)


def remove(uri: Uri) -> None:
    """Remove a file, or a directory with all it holds; nothing happens if there is nothing.

    Raises:
        StorageError: the place cannot be written.
    """
    path = local_path(uri)
    with storage_errors(uri), suppress(FileNotFoundError):
        if path is None:
            filesystem, key = remote(uri)
            found = [str(name) for name in filesystem.find(key)]
            # Manifests first: what is half removed is not taken for whole.
            delete(uri, sorted(found, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name)))
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def content_digest(uri: Uri) -> str:
    """`sha256:…` of a file's bytes, or of the relative names and bytes of all files of a directory.

    Streamed; where the content lies does not matter.

    Raises:
        StorageError: missing, unreachable or refused.
    """
    path = local_path(uri)
    with storage_errors(uri):
        if path is not None:
            single = path.is_file()
        else:
            filesystem, key = remote(uri)
            single = bool(filesystem.isfile(key))
    if single:
        return "sha256:" + file_digest(uri)
    total = hashlib.sha256()
    for name in names(uri):
        total.update(f"{name}\0{file_digest(join(uri, name))}\n".encode())
    return "sha256:" + total.hexdigest()


def file_digest(uri: Uri) -> str:
    """SHA-256 of one file, in hexadecimal, streamed."""
    digest = hashlib.sha256()
    with open(uri, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def arrow_filesystem(uri: Uri) -> tuple[Any, str]:
    """The Arrow file system of `uri` and the path in it. Wrap its use in `storage_errors(uri)`."""
    fs: Any = importlib.import_module("pyarrow.fs")  # Arrow comes without types
    path = local_path(uri)
    if path is not None:
        return fs.LocalFileSystem(), str(path)
    filesystem, key = remote(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), key


@contextmanager
def output(uri: Uri) -> Generator[Path]:
    """A local staging directory that becomes `uri` when the block ends, and vanishes if it fails.

    Raises:
        StorageError: the disk is full (how much was written and how much is free), the place cannot
            be written, or a directory that is no earlier output stands there.
    """
    refuse_strangers(uri)
    path = local_path(uri)
    with storage_errors(uri):
        if path is not None:
            path.resolve().parent.mkdir(parents=True, exist_ok=True)
            staging = sibling(path, "staging")
            staging.mkdir()
        else:
            staging = Path(tempfile.mkdtemp(prefix="rayrun-staging-"))
    try:
        try:
            yield staging
            if path is not None:
                with storage_errors(uri):
                    take_place(staging, path)
            else:
                upload(staging, names(staging), uri)
        except BaseException as error:
            if not isinstance(error, StorageError) and is_disk_full(error):
                written = _size(staging)
                raise StorageError(
                    f"{uri}: the disk of {staging.parent} is full: {human(written)} were written, "
                    f"more is needed, {human(free_bytes(staging.parent))} are free; free some "
                    "space or choose another --out (nothing was left behind)"
                ) from error
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# ---------------------------------------------------------------------------------------------


def _size(directory: Path) -> int:
    return sum(p.lstat().st_size for p in directory.rglob("*") if p.is_file())
