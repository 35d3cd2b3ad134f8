"""One run per output directory: an exclusive claim that ends with its holder.

Locally the claim is a `flock` on a file beside the directory, which the system frees when the
holder dies. On an object store it is an object written only if it is absent, renewed by its holder;
a claim not renewed for `LEASE_S` seconds belongs to a dead run and is taken over. Where the holder
ran on this machine and is no longer there, that is so at once.
"""

import contextvars
import errno
import fcntl
import importlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from rayrun.config import ConfigError
from rayrun.object_store import local_path, remote, storage_errors

LEASE_S = 120.0

ANOTHER_OUT = "wait until it ends, or give this run another --out"

_held: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("held", default=frozenset())


@contextmanager
def claim(
    uri: str | os.PathLike[str], *, lease_s: float = LEASE_S, otherwise: str = ANOTHER_OUT
) -> Generator[None]:
    """Hold the output `uri` exclusively while the block runs; within one run it may be nested.

    Args:
        uri: the output directory; it need not exist.
        lease_s: object stores only: a claim not renewed for this long is void; renewals come
            four times as often.
        otherwise: what a person may do where another run holds it.

    Raises:
        ConfigError: another run holds it; the message names it.
        StorageError: the place cannot be written.
    """
    path = local_path(uri)
    name = str(path.resolve()) if path is not None else os.fspath(uri).rstrip("/")
    if name in _held.get():
        yield
        return
    with _local(path, otherwise) if path is not None else _remote(name, lease_s, otherwise):
        before = _held.get()
        _held.set(before | {name})
        try:
            yield
        finally:
            _held.set(before)


def _owner() -> bytes:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "machine": _machine(),
        "began": _began(os.getpid()),
        "command": " ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv))[:200],
    }
    return json.dumps(owner).encode()


def _machine() -> str:
    """Names the table of processes that our pid is from (Linux); empty where that is not known."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty if it is no longer there."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _is_dead(holder: bytes) -> bool:
    """Whether a claim's holder ran here and has ended. Not knowing is no."""
    try:
        owner = json.loads(holder)
        pid, machine, began = int(owner["pid"]), owner["machine"], owner["began"]
    except (ValueError, KeyError, TypeError):
        return False
    if not machine or not began or machine != _machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's, which /proc may hide
        return False
    return _began(pid) != began


def _taken(uri: str, holder: bytes, otherwise: str) -> ConfigError:
    try:
        owner = json.loads(holder)
        who = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        who += f" ({owner['command']})" if owner["command"] else ""
    except (ValueError, KeyError, TypeError):
        who = "another run"
    return ConfigError(f"{uri} is being written by {who}; {otherwise}")


@contextmanager
def _local(path: Path, otherwise: str) -> Generator[None]:
    path = path.resolve()
    lock = path.parent / f".{path.name}.lock"
    with storage_errors(path):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, lock, otherwise)
    try:
        yield
    finally:
        # Removed while still held: whoever opened the old file sees that it is no longer there.
        with suppress(FileNotFoundError):
            lock.unlink()
        os.close(descriptor)


def _lock(path: Path, lock: Path, otherwise: str) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                    os.truncate(descriptor, 0)
                    os.pwrite(descriptor, _owner(), 0)
                    return descriptor
        except OSError as error:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _taken(str(path), holder, otherwise) from None
            raise
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------
# Object stores


@contextmanager
def _remote(uri: str, lease_s: float, otherwise: str) -> Generator[None]:
    filesystem, path = remote(uri)
    parent, _, name = path.rpartition("/")
    if not parent or not hasattr(filesystem, "call_s3"):
        raise ConfigError(f"{uri} cannot be claimed: an output is a path or s3://BUCKET/KEY")
    lease = _Lease(filesystem, uri, f"{parent}/.{name}.lock", lease_s)
    with storage_errors(uri):
        lease.take(otherwise)
    stop = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(stop,), name="claim", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
        with storage_errors(uri):
            lease.free()


class _Lease:
    """An object that its holder renews; every write names the version it replaces."""

    def __init__(self, filesystem: Any, uri: str, path: str, lease_s: float) -> None:
        self.filesystem = filesystem
        self.uri = uri
        self.bucket, _, self.key = path.partition("/")
        self.lease_s = lease_s
        self.owner = _owner()
        self.etag = ""
        self.lost = False

    def take(self, otherwise: str) -> None:
        for _ in range(3):
            if self._write(IfNoneMatch="*"):
                return
            found = self._read()
            if found is None:
                continue
            holder, age_s, etag = found
            if age_s < self.lease_s and not _is_dead(holder):
                raise _taken(self.uri, holder, otherwise)
            if self._write(IfMatch=etag):
                return
        raise _taken(self.uri, b"", otherwise)

    def keep(self, stop: threading.Event) -> None:
        while not stop.wait(self.lease_s / 4):
            with suppress(Exception):  # a missed renewal is made up by the next one
                if not self._write(IfMatch=self.etag):
                    self.lost = True
                    return

    def free(self) -> None:
        if self.lost:
            raise ConfigError(
                f"{self.uri} was taken over by another run while this one could not renew its "
                "claim; what stands there may be mixed: remove it and run again"
            )
        self.filesystem.call_s3("delete_object", Bucket=self.bucket, Key=self.key)

    def _write(self, **condition: str) -> bool:
        # The body changes with each renewal, so that its ETag names one renewal of one holder.
        body = json.dumps(
            json.loads(self.owner) | {"renewed": time.time_ns(), "nonce": uuid.uuid4().hex}
        ).encode()
        try:
            answer = self.filesystem.call_s3(
                "put_object",
                Bucket=self.bucket,
                Key=self.key,
                Body=body,
                **condition,
            )
        except OSError as error:
            if not _is_conflict(error):
                raise
            # An attempt whose answer was lost may have written it: the next one meets itself.
            found = self._read()
            if found is None or found[0] != body:
                return False
            self.etag = found[2]
            return True
        self.etag = str(answer["ETag"])
        return True

    def _read(self) -> tuple[bytes, float, str] | None:
        try:
            answer = self.filesystem.call_s3("get_object", Bucket=self.bucket, Key=self.key)
        except FileNotFoundError:
            return None
        holder: bytes = _body(self.filesystem, answer["Body"])
        # Both times are the server's, so that clocks need not agree.
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age_s = (now - answer["LastModified"]).total_seconds()
        return holder, age_s, str(answer["ETag"])


def _body(filesystem: Any, stream: Any) -> bytes:
    asyn: Any = importlib.import_module("fsspec.asyn")
    return bytes(asyn.sync(filesystem.loop, stream.read))


def _is_conflict(error: OSError) -> bool:
    text = f"{error} {error.__cause__}"
    return any(
        sign in text
        for sign in ("PreconditionFailed", "pre-condition", "ConditionalRequestConflict", "412")
    )
