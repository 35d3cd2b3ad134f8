"""Artifacts that take long to make: one process of `make test` makes each, all of them read it."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(request: pytest.FixtureRequest, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, filled by `make(folder)` in whichever process asks first.

    The others wait meanwhile. Tests that change what lies in it work on a copy; at the end of the
    fixture whose `request` this is, every file must be as it was made.
    """
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    base = factory.getbasetemp()
    # Each process of pytest-xdist has a folder of its own in that of the whole run.
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (base / "shared").mkdir(exist_ok=True)
    place, record = base / "shared" / name, base / "shared" / f"{name}.json"
    with (base / "shared" / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            shutil.rmtree(place, ignore_errors=True)  # of an attempt that failed
            place.mkdir()
            make(place)
            record.write_text(json.dumps(_stamps(place)))

    def check() -> None:
        assert _stamps(place) == json.loads(record.read_text()), f"a test has changed {place}"

    request.addfinalizer(check)
    return place


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            told = path.stat()
            found[path.relative_to(folder).as_posix()] = [told.st_size, told.st_mtime_ns]
    return found
