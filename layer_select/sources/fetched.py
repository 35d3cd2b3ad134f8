"""Files of an object store that must be read at random places: a copy on this machine, verified.

    $XDG_CACHE_HOME (or ~/.cache)/infnet-ray/models/<key>/NAME, and its length and SHA-256 beside it

The key is of the URI and of what the store says of the object, so a replaced object is fetched
again, and so is a copy that is no longer what was fetched.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayrun import storage
from rayrun.config import ConfigError
from rayrun.object_store import endpoint, local_path, remote, storage_errors

RECORD = "fetched.json"


def here(uri: str) -> Path:
    """A file on this machine with the content of `uri`: itself if local, else the verified copy.

    Processes of one machine wait for the one that fetches.

    Raises:
        StorageError: missing, unreachable, refused, or no room for it here.
        ConfigError: what arrived is shorter or longer than the object.
    """
    if (path := local_path(uri)) is not None:
        return path
    filesystem, key = remote(uri)
    with storage_errors(uri):
        filesystem.invalidate_cache(key)  # it may have been replaced since this process looked
        size, version = int(filesystem.size(key)), str(filesystem.checksum(key))
    name = hashlib.sha256(f"{endpoint()}\n{uri}\n{size}\n{version}".encode()).hexdigest()
    folder = cache() / name[:32]
    place = folder / key.rpartition("/")[2]
    with _locked(folder):
        if not _stands(place):
            shutil.rmtree(place, ignore_errors=True)
            storage.fetch(uri, folder)
            if place.stat().st_size != size:
                arrived = place.stat().st_size
                raise ConfigError(
                    f"{uri} has {size:,} bytes, {arrived:,} arrived at {place}; it was replaced "
                    "meanwhile, or the connection broke: call again"
                )
            record = {"uri": uri, "size": size, "sha256": storage.file_digest(str(place))}
            storage.write_bytes(str(folder / RECORD), json.dumps(record).encode())
    return place


def cache() -> Path:
    """Where copies are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "infnet-ray" / "models"


def _stands(place: Path) -> bool:
    """Whether the copy is what was fetched."""
    record = place.with_name(RECORD)
    if not (place.is_file() and record.is_file()):
        return False
    found = json.loads(record.read_bytes())
    return place.stat().st_size == found["size"] and (
        storage.file_digest(str(place)) == found["sha256"]
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
