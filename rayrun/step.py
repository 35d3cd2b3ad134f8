"""One verb as one step of a pipeline: a child process whose lines, end and result the caller sees.

    done = run_step("infnet", "train", config, store=store, sets=[f"inputs.data={prepared}"])
    done.uri, done.digest, done.cached, done.result.flat()

The step is the command a person would type. What it prints is passed on as it comes; Ctrl-C and
SIGTERM reach it, and its clean-up is awaited. If `$INFNET_EVENTS` names a file, one JSON line per
event is appended there, for whoever draws the progress of several steps.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.metrics import RESULT_FILE, Result

EVENTS = "INFNET_EVENTS"
"""Environment variable: the file that events are appended to."""

TASK_CONFIG = "INFNET_TASK_CONFIG"
"""Environment variable of the child: what the task was given for the pods that compute, as JSON.

Its keys are those of a pod and its container (`resources`, `env`, `nodeSelector`, `tolerations`,
`affinity`, `volumes`, `volumeMounts`); what is not given has no key. Without the variable there is
nothing to hand on. It decides nothing in the store: where a step runs is no part of its key."""

RUN, STEP = "INFNET_RUN", "INFNET_STEP"
"""Environment variables of the child: the names of the pipeline's run and of the step, for whoever
starts something elsewhere on its behalf and must be found again. They decide no result."""

STEPS_FOLDER = "steps"
"""In the directory of a pipeline's run: how each of its steps ended."""

GRACE_S = 60.0
"""How long a step that was told to stop may clean up (Ray alone takes up to 10 s)."""

DRAIN_S = 2.0
"""How long the pipes of a step that has ended may stay open: a process it left may hold them."""

State = Literal["running", "done", "cached", "failed"]


@dataclass(frozen=True)
class StepResult:
    """What a step made, or found in the store."""

    uri: str
    """The directory of the result."""
    key: str
    """What decides it (`rayrun.store`); empty without a store."""
    digest: str
    """Digest of what it holds; empty if it is no artifact."""
    cached: bool
    """It stood in the store already, and was verified."""
    result: Result | None
    """Its `result.json`; None if the verb writes none."""


def run_step(
    prog: str,
    verb: str,
    config: str,
    *,
    store: str = "",
    out: str = "",
    sets: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    step: str = "",
    run: str = "",
    task_config: Any = None,
) -> StepResult:
    """Run `PROG VERB CONFIG …` as a child process to its end.

    Args:
        prog: the command, `infnet`.
        verb: one of its verbs that takes CONFIG.
        config: a path or URI in one line, or the YAML itself in several.
        store: where results are kept (`--store`); or
        out: where this one goes (`--out`). Neither: the verb's own default.
        sets: overrides, each `KEY=VALUE`.
        flags: the verb's own flags by name; None values are left out.
        step: what the events call it; empty: the verb.
        run: directory or URI of the run of a pipeline: the last event is written there too, to
            `steps/<step>.json`, for those who share no file system with this step.
        task_config: `dsl.TaskConfig` of the task, for a launcher of clusters: the child finds what
            is set in it in `$INFNET_TASK_CONFIG`.

    Raises:
        ConfigError: `store` and `out` are both given.
        SystemExit: the step failed; with its exit code (128 + the signal that killed it), after a
            last line on stderr that says why.
    """
    if store and out:
        raise ConfigError(f"step {step or verb}: give store ({store}) or out ({out}), not both")
    events = _Events(os.environ.get(EVENTS, ""), step or verb, run)
    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, "-m", f"{prog.replace('-', '_')}.cli", verb]
        command.append(_config_file(config, Path(folder)))
        command += [f"--set={override}" for override in sets]
        for name, value in (flags or {}).items():
            if value is not None:
                command.append(f"--{name.replace('_', '-')}={value}")
        command += [f"--store={store}"] if store else []
        command += [f"--out={out}"] if out else []
        command.append(f"--record={record}")
        events.write("running", line=f"{prog} {verb}")
        handed_on = _handed_on(task_config)
        if handed_on:  # whoever set them must not believe that this pod has them
            names = ", ".join(json.loads(handed_on[TASK_CONFIG]))  # values may be secret
            print(f"handed on to the pods of a Ray cluster: {names}", flush=True)
        child = _Child(command, events, {**handed_on, **_names(run, events.step)})
        code = child.wait()
        done: Json = json.loads(record.read_bytes()) if record.exists() else {}
    uri = str(done.get("uri", ""))
    if code != 0:
        why = _why(code, child.last_error)
        events.write("failed", line=why, uri=uri, exit_code=code)
        print(f"step {events.step} failed: {why}", file=sys.stderr, flush=True)
        raise SystemExit(code)
    events.write("cached" if done["cached"] else "done", line=child.last, uri=uri, exit_code=0)
    found = uri and storage.exists(storage.join(uri, RESULT_FILE))
    return StepResult(
        uri=uri,
        key=done["key"],
        digest=done["digest"],
        cached=done["cached"],
        result=Result.read(uri) if found else None,
    )


# ---------------------------------------------------------------------------------------------


def _handed_on(task_config: Any) -> dict[str, str]:
    if task_config is None:
        return {}
    given = {
        "resources": task_config.resources,
        "env": task_config.env,
        "nodeSelector": task_config.node_selector,
        "tolerations": task_config.tolerations,
        "affinity": task_config.affinity,
        "volumes": task_config.volumes,
        "volumeMounts": task_config.volume_mounts,
    }
    # A backend writes {} for resources that nobody set.
    found = {name: value for name, value in given.items() if value}
    return {TASK_CONFIG: json.dumps(found)} if found else {}


def _names(run: str, step: str) -> dict[str, str]:
    name = run.rstrip("/").rpartition("/")[2]
    return {RUN: name, STEP: step} if name else {}


def _config_file(config: str, folder: Path) -> str:
    if "\n" not in config.strip():
        return config.strip()
    place = folder / "config.yaml"
    place.write_text(config, encoding="utf-8")
    return str(place)


def _why(code: int, last_error: str) -> str:
    if code == 2:
        return f"bad input (exit code 2): {last_error or 'see the lines above'}"
    if code == 130:
        return "interrupted (exit code 130); run it again to go on"
    if code == 137:
        return (
            "killed (exit code 137), most often because the memory ran out: give it more, or lower "
            "compute.workers or train.batch_size; run it again to go on"
        )
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else "a signal"
        return f"killed by {name} (exit code {code}); run it again to go on"
    return f"a fault of the program (exit code {code}): {last_error or 'see the lines above'}"


class _Events:
    """Lines of JSON, appended to one file by any number of processes at once."""

    def __init__(self, file: str, step: str, run: str) -> None:
        self.file = file
        self.step = step
        self.run = run
        self.started = time.monotonic()

    def write(
        self, state: State, *, line: str = "", uri: str = "", exit_code: int | None = None
    ) -> None:
        event = {
            "time": round(time.time(), 3),
            "step": self.step,
            "state": state,
            "line": line,
            "seconds": round(time.monotonic() - self.started, 3),
            "uri": uri,
            "exit_code": exit_code,
        }
        text = (json.dumps(event, ensure_ascii=False) + "\n").encode()
        if self.run and state != "running":
            storage.write_bytes(storage.join(self.run, STEPS_FOLDER, f"{self.step}.json"), text)
        if not self.file:
            return
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # a long line may take several writes
            while text:
                text = text[os.write(descriptor, text) :]
        finally:
            os.close(descriptor)


class _Child:
    """A process in a session of its own: a Ctrl-C of the terminal reaches it once, through us."""

    def __init__(
        self, command: Sequence[str], events: _Events, environment: Mapping[str, str]
    ) -> None:
        self.command = command
        self.environment = environment
        self.events = events
        self.last = ""
        self.last_error = ""
        self.told_at = 0.0
        """When it was told to stop; 0: it was not."""

    def wait(self) -> int:
        """Run it; its exit code, 128 + the signal if one killed it."""
        with self._stop_signals():
            process = self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                preexec_fn=_ends_with(os.getpid()),
            )
            if self.told_at:
                self._stop()
            pumps = [
                threading.Thread(target=self._pass_on, args=(pipe, to), daemon=True)
                for pipe, to in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
                if pipe is not None
            ]
            for pump in pumps:
                pump.start()
            while True:
                try:
                    code = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if self.told_at and time.monotonic() - self.told_at > GRACE_S:
                        os.killpg(process.pid, signal.SIGKILL)
            until = time.monotonic() + DRAIN_S
            for pump in pumps:
                pump.join(timeout=max(0.0, until - time.monotonic()))
        if code < 0:
            with contextlib.suppress(ProcessLookupError):  # whom it started and did not end
                os.killpg(process.pid, signal.SIGKILL)
            code = 130 if self.told_at and -code == signal.SIGTERM else 128 - code
        return code

    def _pass_on(self, pipe: IO[bytes], to: IO[str]) -> None:
        for raw in iter(pipe.readline, b""):
            line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
            with contextlib.suppress(OSError, ValueError):  # whoever read us has gone; the step
                print(line, file=to, flush=True)  # must not wait for a pipe that nobody empties
            if line.startswith("error: "):
                self.last_error = line.removeprefix("error: ")
            elif self.last_error and line.startswith(" ") and to is sys.stderr:
                self.last_error += " " + line.strip()  # one line per wrong key
            if line.strip():
                self.last = line.strip()
                self.events.write("running", line=self.last)

    @contextlib.contextmanager
    def _stop_signals(self) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread hears signals (a notebook's executor does not)
            return

        def told(number: int, frame: object) -> None:
            if not self.told_at:
                self.told_at = time.monotonic()
                self._stop()

        before = {n: signal.signal(n, told) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        process: subprocess.Popen[bytes] | None = getattr(self, "process", None)
        if process is not None:
            # SIGTERM for both: a background job of a shell ignores SIGINT.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)


def _ends_with(parent: int) -> Callable[[], None] | None:
    """Runs in the child: it is told to stop when its parent dies, even by SIGKILL (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    libc: Any = ctypes.CDLL(None)
    pr_set_pdeathsig = 1

    def tie() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return tie
