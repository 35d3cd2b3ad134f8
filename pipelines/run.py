"""Run a pipeline on this machine and show it: KFP's local runner below, the records of its steps.

<root>/store/…                    what steps make, by content
<root>/runs/<run>/pipeline.yaml   the specification that ran, and arguments.json
                  pipeline.log    all that KFP and the steps printed
                  events.jsonl    the steps' events, as they came
                  status.json, report.html

A root on an object store has the store and the records only; see `pipelines.places`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipelines.local import ARGUMENTS, SPEC
from pipelines.places import complete, new_folder, records_of, root_of, say
from pipelines.processes import end_all, kill_all
from pipelines.view import view

__all__ = [
    "DONE",
    "INTERRUPTED",
    "LOG",
    "Ended",
    "explain",
    "new_folder",
    "records_of",
    "root_of",
    "run_and_report",
    "run_once",
    "sigterm_interrupts",
    "tell",
]

LOG = "pipeline.log"
RUN_NAME = "{{$.pipeline_job_name}}"
"""KFP's placeholder for the name of a run: here it is known before the run starts."""

LOOK_EVERY_S = 0.1
DONE, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
KILLED = 137
ERROR_LINES = 12
"""Lines of a step's error that are repeated; its log has all."""


class Cancelled(KeyboardInterrupt):
    """SIGTERM: clean up and leave as for Ctrl-C."""


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    folder: Path
    steps: Mapping[str, Any]
    """`rayrun.run_record.Step` by name."""
    code: int
    """Exit code of the KFP process."""
    records: str = ""
    """Where its status and its report are; empty: in `folder`."""

    @property
    def failed(self) -> Any:
        """The step that failed, or None."""
        return next((step for step in self.steps.values() if step.state == "failed"), None)


def run(
    name: str, text: str, arguments: Mapping[str, Any], folder: Path, steps: Sequence[str]
) -> Ended:
    """Run a compiled pipeline to its end, showing its progress.

    Args:
        name: of the pipeline.
        text: its specification, YAML.
        arguments: checked arguments.
        folder: of the run.
        steps: names of its steps, in their order.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, once everything below has ended.
    """
    from rayrun.run_record import EVENTS_FILE, fold, read_steps

    (folder / SPEC).write_text(text.replace(RUN_NAME, folder.name), encoding="utf-8")
    (folder / ARGUMENTS).write_text(json.dumps(dict(arguments), indent=1), encoding="utf-8")
    events = _Tail(folder / EVENTS_FILE)
    with _scratch() as scratch, view(f"{name}  {folder}") as show:
        child = _start(folder, scratch, events.file)
        try:
            while child.poll() is None:
                show(fold(steps, events.read()))
                time.sleep(LOOK_EVERY_S)
        except KeyboardInterrupt:
            end_all(child, scratch)
            raise
        finally:
            kill_all(child, scratch)  # a step whose KFP process was killed
        found = read_steps(folder, steps)
        show(found)
    return Ended(folder, found, child.returncode, records_of(str(arguments["root"]), folder))


def run_once(
    name: str, text: str, arguments: Mapping[str, Any], steps: Sequence[str], again: str
) -> int:
    """Run a pipeline, say what came of it, and return the exit code.

    Args:
        name: of the pipeline.
        text: its specification, YAML.
        arguments: checked arguments.
        steps: names of its steps, in their order.
        again: the command line that goes on after an interruption.
    """
    folder = new_folder(arguments["root"], name)
    ended = run_and_report(name, text, arguments, folder, steps)
    if ended.code != 0:
        return explain(ended, again)
    tell(name, ended)
    return DONE


def run_and_report(
    name: str, text: str, arguments: Mapping[str, Any], folder: Path, steps: Sequence[str]
) -> Ended:
    """`run`; a run that did not reach its exit handler gets its status and report all the same, and
    what it alone had put on Serve is taken down.
    """
    from rayrun import storage
    from rayrun.config import ConfigError
    from rayrun.ray.take_down import take_down
    from rayrun.run_report import REPORT_FILE, write_report

    records = records_of(str(arguments["root"]), folder)
    say(folder, records)
    interrupted = True
    try:
        ended = run(name, text, arguments, folder, steps)
        interrupted = False
    finally:
        try:
            complete(folder, records)
            if interrupted or not storage.exists(storage.join(records, REPORT_FILE)):
                notes = take_down(records, steps, str(arguments.get("serve_address", "")))
                write_report(records, name, steps, interrupted=interrupted, notes=notes)
        except ConfigError as error:  # the object store is gone: say also what became of the steps
            print(f"warning: the records of the run are not whole: {error}", file=sys.stderr)
    return ended


def tell(name: str, ended: Ended) -> None:
    """One line on what ran, and where the report is."""
    from rayrun import storage
    from rayrun.run_report import REPORT_FILE

    count = {state: 0 for state in ("done", "cached", "skipped")}
    for step in ended.steps.values():
        count[step.state] = count.get(step.state, 0) + 1
    words = {"done": "ran", "cached": "cached", "skipped": "skipped"}
    told = ", ".join(f"{count[state]} {word}" for state, word in words.items() if count[state])
    report = storage.join(ended.records or ended.folder, REPORT_FILE)
    print(f"{name}: done, {told}\nreport: {report}", flush=True)


def explain(ended: Ended, again: str) -> int:
    """Say on stderr why a run failed and what to do; the exit code."""
    log = ended.folder / LOG
    step = ended.failed
    if step is None:
        last = _last_line(log)
        print(
            f"error: KFP's local runner ended with exit code {ended.code} outside of the steps: "
            f"{last}\nits log: {log}",
            file=sys.stderr,
        )
        return FAULT
    code = step.exit_code if step.exit_code is not None else KILLED
    if step.exit_code is None or code == KILLED:
        why = "was killed (exit code 137), most often because the memory ran out"
        print(
            f"error: the step {step.name} {why}: give it more, or lower compute.workers or "
            f"train.batch_size\nits log: {log}\n"
            f"what was done is kept; to go on, run again: {again}",
            file=sys.stderr,
        )
        return FAULT
    said = _error_of(ended.folder, step.name) or step.line
    print(f"error: the step {step.name} failed: {said}\nits log: {log}", file=sys.stderr)
    return BAD_INPUT if code == BAD_INPUT else FAULT


@contextlib.contextmanager
def sigterm_interrupts() -> Generator[None]:
    """SIGTERM in the block is `Cancelled`."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise Cancelled

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------------------------------------


def _start(folder: Path, scratch: str, events: Path) -> subprocess.Popen[bytes]:
    from rayrun.step import EVENTS

    environment = os.environ | {
        EVENTS: str(events),
        "TMPDIR": scratch,
        "PYTHONUNBUFFERED": "1",
    }
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.local", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C of the terminal reaches it once, through us
        )


@contextlib.contextmanager
def _scratch() -> Generator[str]:
    """A temporary directory for everything below; short, for the sockets of Ray lie in it."""
    folder = tempfile.mkdtemp(prefix="p")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Tail:
    """A file of events that grows: all whole lines so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.events: list[dict[str, Any]] = []
        self.at = 0

    def read(self) -> list[dict[str, Any]]:
        from rayrun.run_record import events_in

        if self.file.exists():
            with self.file.open("rb") as stream:
                stream.seek(self.at)
                new = stream.read()
            whole = new[: new.rfind(b"\n") + 1]
            self.at += len(whole)
            self.events += events_in(whole.decode("utf-8", errors="replace"))
        return self.events


def _error_of(folder: Path, step: str) -> str:
    """What a step said from its last `error: ` on: a refused configuration takes several lines."""
    from rayrun.run_record import EVENTS_FILE, events_in

    text = (folder / EVENTS_FILE).read_text(encoding="utf-8", errors="replace")
    events = [e for e in events_in(text) if e["step"] == step and e["state"] == "running"]
    lines = [str(event["line"]) for event in events]
    starts = [at for at, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return ""
    found = lines[starts[-1] : starts[-1] + ERROR_LINES]
    return "\n  ".join([found[0].removeprefix("error: "), *found[1:]])


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
