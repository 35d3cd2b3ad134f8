"""The file systems behind a URI, with bounded patience, and their failures in one readable line.

A URI is a plain string: a local path, `file://…`, `s3://bucket/key`, or any other scheme of fsspec.
The S3 endpoint and the credentials come from the usual AWS variables (`AWS_ENDPOINT_URL`, …).
`AWS_MAX_ATTEMPTS` (5) and `INFNET_S3_TIMEOUT_S` (30) say how much is borne with: how often a
request is made, and how long its answer may stand still.
"""

import errno
import functools
import importlib
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rayrun.config import ConfigError

CONNECT_TIMEOUT_S = 4.0
PROBE_TIMEOUT_S = 4.0
"""A store that has not answered the first, smallest request twice in this time is unreachable."""
READ_TIMEOUT_S = 30.0
"""How long an answer may stand still, where `INFNET_S3_TIMEOUT_S` says nothing else."""
MAX_ATTEMPTS = 5
"""Of one request, where `AWS_MAX_ATTEMPTS` says nothing else."""
DELETED_AT_ONCE = 1000
"""Objects in one request to remove them; the most that S3 takes."""
ATTEMPTS, TIMEOUT = "AWS_MAX_ATTEMPTS", "INFNET_S3_TIMEOUT_S"

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


class Busy(StorageError):
    """A store that is there and did not serve a request, however often it was asked."""


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


def delete(uri: str | os.PathLike[str], keys: Sequence[str]) -> None:
    """Remove objects of the bucket of `uri`; nothing happens where there is none.

    Raises:
        StorageError: the store cannot be asked, or has kept one of them.
    """
    filesystem, _ = remote(uri)
    if not hasattr(filesystem, "call_s3"):
        filesystem.rm(list(keys))
        return
    # The file system's own way says nothing of an object that the store did not remove.
    for first in range(0, len(keys), DELETED_AT_ONCE):
        some = [key.partition("/") for key in keys[first : first + DELETED_AT_ONCE]]
        objects = [{"Key": key} for _, _, key in some]
        answer = filesystem.call_s3(
            "delete_objects", Bucket=some[0][0], Delete={"Objects": objects, "Quiet": True}
        )
        for kept in answer.get("Errors", []):
            raise StorageError(
                f"s3://{some[0][0]}/{kept.get('Key')}: the object store{_where('s3')} did not "
                f"remove it ({kept.get('Code')}: {kept.get('Message')}); check what the "
                "credentials may do with the bucket, or run it again"
            )


def endpoint() -> str:
    """The S3 endpoint of the environment; empty: Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def check_bucket(uri: str) -> None:
    """Ask for the bucket of an S3 URI, before any work is done for it.

    Raises:
        StorageError: it does not exist, the store cannot be reached, or refuses.
    """
    filesystem, key = remote(uri)
    bucket = key.partition("/")[0]
    try:
        with storage_errors(uri):
            filesystem.call_s3("head_bucket", Bucket=bucket)
    except StorageError as error:  # the answer to HEAD has no body that says what is not there
        if isinstance(error.__cause__, FileNotFoundError):
            raise StorageError(_no_bucket(uri)) from error
        raise


def _s3_settings() -> tuple[str, ...]:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    return (endpoint(), *(os.environ.get(name, "") for name in (ATTEMPTS, TIMEOUT, *names)))


@functools.lru_cache(maxsize=8)
def _s3(pid: int, endpoint_url: str, attempts: str, timeout_s: str, *credentials: str) -> Any:
    # Keyed by process and credentials: an event loop does not survive a fork, and a key may change.
    patience_s = _positive(TIMEOUT, timeout_s, READ_TIMEOUT_S)
    return _connect(endpoint_url, patience_s, int(_positive(ATTEMPTS, attempts, MAX_ATTEMPTS)))


@functools.lru_cache(maxsize=64)
def _probe(bucket: str, pid: int, endpoint_url: str, *settings: str) -> None:
    # Patience is for a store that is there: whether it is, one small question tells.
    filesystem = _connect(endpoint_url, PROBE_TIMEOUT_S, 2)
    # An answer all the same, and one that is busy may be so for long.
    with suppress(FileNotFoundError, PermissionError, Busy):
        filesystem.call_s3("head_bucket", Bucket=bucket)


def _positive(name: str, given: str, otherwise: float) -> float:
    try:
        value = float(given or otherwise)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6 or (name == ATTEMPTS and value != int(value)):
        kind = "a whole number from 1 on" if name == ATTEMPTS else "a number of seconds above 0"
        raise StorageError(f"{name} must be {kind}, found {given!r}; correct it or unset it")
    return value


def _connect(endpoint_url: str, read_timeout_s: float, attempts: int) -> Any:
    patient: Any = importlib.import_module("rayrun.patient_s3")  # s3fs takes a second to import
    return patient.PatientS3(
        attempts=attempts,
        endpoint_url=endpoint_url or None,
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": read_timeout_s,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        },
    )


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
    where = _where(uri)
    kind = type(error).__name__
    seen = f"{kind}: {text}".lower()
    if isinstance(error, PermissionError) or "Credentials" in kind or _any(BAD_CREDENTIALS, seen):
        return StorageError(
            f"{uri}: the object store{where} refused the credentials ({text or kind}); check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do with the bucket"
        )
    if "nosuchbucket" in seen or "bucket does not exist" in seen:
        return StorageError(_no_bucket(uri))
    if isinstance(error, FileNotFoundError) or "path does not exist" in seen:
        return StorageError(f"{uri}: there is no such file or directory{where}; check the URI")
    if _any(UNREACHABLE, seen) or "Timeout" in kind or module == "aiohttp":
        return StorageError(
            f"{uri}: the object store{where} cannot be reached ({text or kind}); "
            "check AWS_ENDPOINT_URL and the network"
        )
    return StorageError(f"{uri}: {text or kind}")


def gave_up(uri: str, error: Exception, attempts: int, seconds: float) -> StorageError:
    """What a person should read when a request to an S3 store failed in every attempt."""
    text = " ".join(str(error).split()) or type(error).__name__
    asked = f"{attempts} attempts in {seconds:.0f} s"
    if isinstance(getattr(error, "response", None), dict):  # it answered, with 500, 503, …
        return Busy(
            f"{uri}: the object store{_where(uri)} did not serve the request ({text}; {asked}); "
            "run it again when the store is well: what was done before is kept"
        )
    return StorageError(
        f"{uri}: the object store{_where(uri)} cannot be reached or breaks off ({text}; {asked}); "
        "check AWS_ENDPOINT_URL and the network"
    )


def _where(uri: str) -> str:
    return f" at {endpoint()}" if uri.startswith("s3") and endpoint() else ""


def _no_bucket(uri: str) -> str:
    bucket = uri.partition("://")[2].partition("/")[0]
    return f"{uri}: there is no bucket {bucket!r}{_where(uri)}; make it or check the URI"


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
