"""Directories on an object store: written so that no reader takes a part for the whole.

An object appears at once, a directory does not. While files come, an object `.incomplete` stands
beside them; the manifest of before goes first and the new one comes last.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayrun.object_store import StorageError, delete, local_path, remote, storage_errors
from rayrun.replacing import INCOMPLETE, MANIFEST


def refuse_incomplete(uri: str | os.PathLike[str]) -> None:
    """Refuse a directory whose upload has not ended, for whoever reads its parts one by one.

    Raises:
        StorageError: it goes on, or was broken off.
    """
    if local_path(uri) is not None:
        return
    filesystem, key = remote(uri)
    with storage_errors(uri):
        signs = [f"{key}/{name}" for name in (INCOMPLETE, MANIFEST)]
        refuse_unless_whole(uri, [sign for sign in signs if filesystem.exists(sign)], key)


def refuse_unless_whole(uri: str | os.PathLike[str], names: Iterable[str], key: str) -> None:
    """The same, for whoever has listed the directory already.

    Args:
        uri: of the directory.
        names: objects in it, each with its bucket and whole key.
        key: bucket and key of the directory.
    """
    found = set(names)
    if f"{key}/{INCOMPLETE}" in found and f"{key}/{MANIFEST}" not in found:
        raise StorageError(
            f"{uri} is not whole (there is {INCOMPLETE} and no {MANIFEST}): it is being uploaded, "
            "or the upload was broken off; wait until it ends, or make it again"
        )


def upload(local_dir: Path, files: Iterable[str], uri: str | os.PathLike[str]) -> None:
    """Make the directory `uri` a copy of these files; others that stood there are removed.

    Raises:
        StorageError: unreachable, refused or given up; then `.incomplete` stands there.
    """
    filesystem, key = remote(uri)
    scheme = os.fspath(uri).partition("://")[0]
    with storage_errors(uri):
        before = {str(name) for name in filesystem.find(key)}
        filesystem.pipe_file(f"{key}/{INCOMPLETE}", b"")
        if f"{key}/{MANIFEST}" in before:
            filesystem.rm_file(f"{key}/{MANIFEST}")
        _abort_uploads(filesystem, key)

    def put_file(name: str) -> None:
        with storage_errors(f"{scheme}://{key}/{name}"):
            filesystem.put_file(str(local_dir / name), f"{key}/{name}")

    ordered = sorted(files)
    for name in ordered:
        if name != MANIFEST:
            put_file(name)
    with storage_errors(uri):
        kept = {f"{key}/{name}" for name in (*ordered, MANIFEST, INCOMPLETE)}
        delete(uri, sorted(before - kept - {key}))
    if MANIFEST in ordered:
        put_file(MANIFEST)
    with storage_errors(uri):
        filesystem.rm_file(f"{key}/{INCOMPLETE}")


def _abort_uploads(filesystem: Any, key: str) -> None:
    """Parts of large files that a killed uploader left: nobody sees them, yet they are stored."""
    if not hasattr(filesystem, "call_s3"):
        return
    bucket, _, prefix = key.partition("/")
    with suppress(OSError):  # not every store lets one ask, and nothing depends on it
        there = filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
        for left in there.get("Uploads", []):
            named = {"Key": left["Key"], "UploadId": left["UploadId"]}
            filesystem.call_s3("abort_multipart_upload", Bucket=bucket, **named)
