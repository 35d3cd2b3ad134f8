"""The file systems behind a URI, with bounded patience, and their failures in one readable line.

A URI is a plain string: a local path, `file://…`, `s3://bucket/key`, or any other scheme of fsspec.
The S3 endpoint and the credentials come from the usual AWS variables (`AWS_ENDPOINT_URL`, …).
"""

import errno
import functools
import importlib
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rayrun.config import ConfigError

CONNECT_TIMEOUT_S = 4.0
PROBE_TIMEOUT_S = 4.0
"""A store that has not answered the first, smallest request twice in this time is unreachable."""
READ_TIMEOUT_S = 30.0
MAX_ATTEMPTS = 4

BAD_CREDENTIALS = (
    "accessdenied",
    "access denied",
    "forbidden",
    "invalidaccesskeyid",
    "invalid access key",
    "access key id you provided",
    "access_denied",
    "signaturedoesnotmatch",
    "signature we calculated",
    "invalidtoken",
    "expiredtoken",
    "token has expired",
    "not authorized",
    "not valid",
)
UNREACHABLE = (
    "could not connect",
    "connect timeout",
    "connection",
    "network_connection",
    "couldn't connect",
    "timeout was reached",
    "read timeout",
    "name or service not known",
    "temporary failure in name resolution",
)


class StorageError(ConfigError):
    """A place that cannot be read or written: missing, unreachable, refused, full. Exit code 2."""


def local_path(uri: str | os.PathLike[str]) -> Path | None:
    """The path of a local URI; None for an object store."""
    text = os.fspath(uri)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(text)


def absolute(uri: str) -> str:
    """A URI that means the same in another working directory; empty stays empty."""
    path = local_path(uri) if uri else None
    return uri if path is None else str(path.absolute())


def remote(uri: str | os.PathLike[str]) -> tuple[Any, str]:
    """The fsspec file system of an object-store URI, and the path in it."""
    text = os.fspath(uri)
    scheme, _, rest = text.partition("://")
    if scheme in ("s3", "s3a"):
        settings = (os.getpid(), *_s3_settings())
        with storage_errors(text):
            _probe(rest.partition("/")[0], *settings)
            return _s3(*settings), rest.rstrip("/")
    core: Any = importlib.import_module("fsspec.core")
    try:
        filesystem, path = core.url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"{text}: the scheme {scheme}:// cannot be used ({error}); use a path or s3://"
        ) from None
    return filesystem, str(path).rstrip("/")


def endpoint() -> str:
    """The S3 endpoint of the environment; empty: Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _s3_settings() -> tuple[str, ...]:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    return (endpoint(), *(os.environ.get(name, "") for name in names))


@functools.lru_cache(maxsize=8)
def _s3(pid: int, endpoint_url: str, *credentials: str) -> Any:
    # Keyed by process and credentials: an event loop does not survive a fork, and a key may change.
    return _connect(endpoint_url, READ_TIMEOUT_S, MAX_ATTEMPTS)


@functools.lru_cache(maxsize=64)
def _probe(bucket: str, pid: int, endpoint_url: str, *credentials: str) -> None:
    # Patience is for a store that is there: whether it is, one small question tells.
    filesystem = _connect(endpoint_url, PROBE_TIMEOUT_S, 2)
    with suppress(FileNotFoundError, PermissionError):  # an answer all the same
        filesystem.call_s3("head_bucket", Bucket=bucket)


def _connect(endpoint_url: str, read_timeout_s: float, attempts: int) -> Any:
    s3fs: Any = importlib.import_module("s3fs")
    filesystem: Any = s3fs.S3FileSystem(
        endpoint_url=endpoint_url or None,
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": read_timeout_s,
            "retries": {"total_max_attempts": attempts, "mode": "standard"},
        },
    )
    filesystem.retries = max(1, attempts - 1)  # for answers that break off half-way
    return filesystem


@contextmanager
def storage_errors(uri: str | os.PathLike[str], *, needed: int | None = None) -> Generator[None]:
    """Turn what file systems, botocore and Arrow raise about `uri` into one `StorageError`.

    Args:
        uri: the place that is read or written inside the block.
        needed: bytes about to be written, for the message when the disk is full.

    Raises:
        StorageError: missing, unreachable, refused, or full.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        explained = explain(error, os.fspath(uri), needed=needed)
        if explained is None:
            raise
        raise explained from error


def explain(error: BaseException, uri: str, *, needed: int | None = None) -> StorageError | None:
    """What a person should read about `error`, or None if it is not about storage."""
    if is_disk_full(error):
        return StorageError(_full(uri, needed))
    path = local_path(uri)
    if path is not None:
        return _explain_local(error, path)
    module = type(error).__module__.partition(".")[0]
    if not isinstance(error, OSError) and module not in ("botocore", "aiobotocore", "aiohttp"):
        return None
    text = " ".join(str(error).split())
    where = f" at {endpoint()}" if uri.startswith("s3") and endpoint() else ""
    kind = type(error).__name__
    seen = f"{kind}: {text}".lower()
    if isinstance(error, PermissionError) or "Credentials" in kind or _any(BAD_CREDENTIALS, seen):
        return StorageError(
            f"{uri}: the object store{where} refused the credentials ({text or kind}); check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do with the bucket"
        )
    if "nosuchbucket" in seen or "bucket does not exist" in seen:
        bucket = uri.partition("://")[2].partition("/")[0]
        return StorageError(
            f"{uri}: there is no bucket {bucket!r}{where}; make it or check the URI"
        )
    if isinstance(error, FileNotFoundError) or "path does not exist" in seen:
        return StorageError(f"{uri}: there is no such file or directory{where}; check the URI")
    if _any(UNREACHABLE, seen) or "Timeout" in kind or module == "aiohttp":
        return StorageError(
            f"{uri}: the object store{where} cannot be reached ({text or kind}); "
            "check AWS_ENDPOINT_URL and the network"
        )
    return StorageError(f"{uri}: {text or kind}")


def _any(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)


def _explain_local(error: BaseException, path: Path) -> StorageError | None:
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{path}: there is no such file or directory; check the path")
    if isinstance(error, PermissionError):
        return StorageError(f"{path}: permission denied; check who may read and write there")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return StorageError(f"{path}: a directory is needed, a file stands in the way")
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{path}: a file is needed, found a directory")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return StorageError(f"{path}: the file system is read-only; choose another place")
    return None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one behind it (also across a Ray task), says that a disk is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, OSError) and "No space left on device" in str(error):
            return True
        behind = getattr(error, "cause", None)
        error = behind if isinstance(behind, BaseException) else error.__cause__
    return False


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that holds `path`, or its nearest existing parent."""
    here = path.absolute()
    while not here.exists():
        here = here.parent
    stats = os.statvfs(here)
    return stats.f_bavail * stats.f_frsize


def human(num_bytes: int) -> str:
    """`1.5 GiB`."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _full(uri: str, needed: int | None) -> str:
    path = local_path(uri)
    free = f"{human(free_bytes(path))} are free" if path is not None else "it took no more"
    need = f"at least {human(needed)} are needed, " if needed is not None else ""
    return f"{uri}: the disk is full: {need}{free}; free some space or choose another --out"
