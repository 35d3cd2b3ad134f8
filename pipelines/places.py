"""Where a run's files are. On this machine, always: what KFP's local runner, the log and the events
need a file system for. In the root, which may be an object store: the store and the run's records.

<root>/store/…                           what steps make, by content
<root>/runs/<run>/steps/*.json           how each step ended; status.json, report.html
                  local.json             root on an object store: where the rest is
<root or runs/NAME>/runs/<run>/…         the rest: see `pipelines.run`
"""

import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from pipelines.compiled import PipelineError

ELSEWHERE = "local.json"


def root_of(text: str) -> str:
    """The place of the store and the runs, the same from any working directory.

    Raises:
        PipelineError: it is neither a directory here nor on S3.
        StorageError: its bucket does not exist, or the store cannot be reached or refuses.
    """
    from rayrun import storage

    path = storage.local_path(text)
    if path is not None:
        return str(path.absolute())
    if not text.startswith(("s3://", "s3a://")):
        raise PipelineError(f"--root must be a directory or s3://BUCKET/KEY, found {text}")
    storage.check_bucket(text)
    return text.rstrip("/")


def new_folder(root: str | Path, name: str) -> Path:
    """The directory on this machine of a new run, `…/runs/<name>-<UTC time>-<four random digits>`:
    in the root, or in `runs/<name>` if the root is on an object store.

    Raises:
        PipelineError: it cannot be made.
        StorageError: nothing can be written to the root.
    """
    from rayrun import storage

    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    run = f"{name}-{stamp}-{secrets.token_hex(2)}"
    local = storage.is_local(root)
    folder = (Path(root) if local else Path("runs", name).absolute()) / "runs" / run
    if not local:  # before anything is made here
        place = {"host": socket.gethostname(), "folder": str(folder)}
        text = json.dumps(place, indent=1) + "\n"
        storage.write_bytes(storage.join(records_of(root, folder), ELSEWHERE), text.encode())
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        where = f"--root {root}: {folder}" if local else str(folder)
        raise PipelineError(
            f"{where} cannot be made ({error.strerror}); choose another "
            f"{'--root' if local else 'working directory'}"
        ) from None
    return folder


def records_of(root: str | Path, folder: Path) -> str:
    """Where the records of the run with this directory are; that itself, if the root is here."""
    from rayrun import storage

    return str(folder) if storage.is_local(root) else storage.join(root, "runs", folder.name)


def complete(folder: Path, records: str) -> None:
    """Bring to records on an object store what only the events here know: of a step that was killed
    or interrupted. What stands there is kept.

    Raises:
        StorageError: the store cannot be written.
    """
    from rayrun import storage
    from rayrun.run_record import EVENTS_FILE, events_in
    from rayrun.step import STEPS_FOLDER

    events = folder / EVENTS_FILE
    if records == str(folder) or not events.exists():
        return
    last: dict[str, dict[str, Any]] = {}
    for event in events_in(events.read_text(encoding="utf-8", errors="replace")):
        last[str(event["step"])] = event
    for step, event in last.items():
        place = storage.join(records, STEPS_FOLDER, f"{step}.json")
        if not storage.exists(place):
            text = json.dumps(event, ensure_ascii=False) + "\n"
            storage.write_bytes(place, text.encode())


def say(folder: Path, records: str) -> None:
    """Where the files of a run are, where that is not one place."""
    if os.fspath(folder) != records:
        print(f"records: {records}\nlog, events and KFP's own outputs: {folder}", flush=True)
