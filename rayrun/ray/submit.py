"""A verb as a job of a Ray cluster: `compute: {type: attached, address: http://HOST:8265}`.

The same verb is submitted to the dashboard's Jobs API with the resolved configuration, in which
`compute` then says "the cluster this runs in". The job's id follows from what is asked for, so the
same command finds the job of a client that died and follows it. Configuration and record travel
through a folder beside the output, which both sides must reach.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rayrun import storage, store, yaml12
from rayrun.config import Config, ConfigError, Json, digest_of
from rayrun.metrics import RESULT_FILE, Result
from rayrun.ray.compute import AttachedCompute
from rayrun.ray.job_client import Jobs
from rayrun.ray.job_log import ENDED, follow
from rayrun.verb import Ended, Verb

GRACE_S = 30
"""How long a job that was told to stop may clean up; Ray's default is 3 s."""
STOPPED_S = 45.0
"""How long to wait for it; a step of a pipeline has 60 s."""

FAULT, NOT_FOUND = 1, 127
ID_DIGITS = 12
DATA = "INFNET_DATA"
EXCLUDED = (
    "/runs/",
    "/data/",
    "/.venv/",
    "/.git/",
    "/build/",
    "/dist/",
    "__pycache__/",
    ".*_cache/",
)
"""What of a working directory is not sent, beside what its .gitignore and .rayignore name."""


@dataclass(frozen=True)
class Submitted:
    """What a job left."""

    record: Json
    """As the job's own `--record`."""
    result: Result | None
    """Of a job that had succeeded before; None where its log has been shown."""


@dataclass(frozen=True)
class Request:
    """One call of a verb, to be made elsewhere."""

    prog: str
    verb: Verb
    config: Config
    flags: Mapping[str, Any]
    place: str
    """Absolute: the output, or the store."""
    stored: bool
    """`place` is a store."""

    @property
    def compute(self) -> AttachedCompute:
        """Where to."""
        return cast(AttachedCompute, getattr(self.config, "compute"))  # noqa: B009 - any product's

    @property
    def resolved(self) -> Json:
        """The configuration as the job reads it."""
        cluster: Json = self.compute.to_dict() | {"address": "auto", "working_dir": "auto"}
        return self.config.to_dict() | {"compute": cluster}

    @property
    def name(self) -> str:
        """Submission id, of what is asked for: not of `compute`, and not of the sources."""
        asked = {
            "config": self.resolved | {"compute": None},
            "flags": dict(self.flags),
            "place": [self.stored, self.place],
        }
        digits = digest_of(asked).removeprefix("sha256:")[:ID_DIGITS]
        return f"{self.prog}-{self.verb.name}-{digits}"

    @property
    def folder(self) -> str:
        """Where the configuration and the record of the job lie while it is there."""
        above = self.place if self.stored else self.place.rstrip("/").rpartition("/")[0]
        return storage.join(above, f".{self.name}")

    @property
    def program(self) -> str:
        """Digest of the sources that are sent."""
        return store.program_digest("rayrun", self.prog.replace("-", "_"))


def request(
    prog: str, verb: Verb, config: Config, flags: Mapping[str, Any], *, out: str, kept: str
) -> Request:
    """The request of a command line, with places that mean the same elsewhere.

    Args:
        prog: the program.
        verb: one that does not say `here`.
        config: its `compute` takes jobs.
        flags: values of the verb's own flags.
        out: of `--out`, where `kept` is empty.
        kept: of `--store`.
    """
    places = {flag.name for flag in verb.flags if flag.place}
    given = {n: storage.absolute(v) if n in places and v else v for n, v in flags.items()}
    return Request(prog, verb, config, given, storage.absolute(kept or out), bool(kept))


def plan(asked: Request) -> str:
    """What would be submitted, and where to; nothing is asked or sent."""
    return f"# job {asked.name} on {asked.compute.address}\n{yaml12.dump(asked.resolved)}"


def run(asked: Request) -> Submitted:
    """Run a verb as a job and follow it to its end.

    A job of the same request that is there still is followed; one that succeeded with the same
    sources, and whose result stands, is not run again; after one that failed or was stopped a new
    one goes on. An interrupt stops the job, waits for that, and is raised again.

    Raises:
        ConfigError: no cluster, a token that is refused, a folder that cannot be sent.
        Ended: the job failed, with its exit code; its log has said why.
        KeyboardInterrupt: here, or the job was stopped by somebody.
    """
    jobs = Jobs(asked.compute.address)
    known = jobs.named(asked.name)
    newest = max(known, key=_attempt, default="")
    state = str(known[newest]["status"]) if newest else ""
    if state == "SUCCEEDED" and (done := _standing(asked, known[newest])):
        _say(f"job {newest} has succeeded: {asked.place}")
        return Submitted({}, done)
    live = bool(newest) and state not in ENDED
    job = newest if live else asked.name + (f"-{_attempt(newest) + 1}" if newest else "")
    try:
        if live:
            _say(f"following the job {job}, which is {state.lower()} on {jobs.address}")
        else:
            _say(f"job {job} on {jobs.address}")
            _submit(jobs, job, asked)
        info = follow(jobs, job, _Shown())
    except KeyboardInterrupt:
        _stop(jobs, job)
        storage.remove(asked.folder)
        raise
    record = _record(asked)
    storage.remove(asked.folder)
    if info["status"] == "STOPPED":
        _say(f"job {job} was stopped")
        raise KeyboardInterrupt
    if info["status"] == "FAILED":
        _raise_failed(asked, job, info, record)
    if record is None:
        raise ConfigError(_not_shared(asked))
    return Submitted(record, None)


# ---------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Shown:
    """Lines of a job as its program would have said them: from an error on, on stderr."""

    def __init__(self) -> None:
        self._to = sys.stdout

    def __call__(self, line: str) -> None:
        if line.startswith("error: "):
            self._to = sys.stderr
        try:
            print(line, file=self._to, flush=True)
        except BrokenPipeError:  # the reader of our output has gone; how the job ends still counts
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._to.fileno())


def _attempt(job: str) -> int:
    last = job.rpartition("-")[2]
    return int(last) if last.isdecimal() and len(last) < ID_DIGITS else 1


def _standing(asked: Request, info: Json) -> Result | None:
    """The result of a job that succeeded, if the same would be made and it is there."""
    metadata: Json = info.get("metadata") or {}
    made_by = metadata.get("program")
    if asked.stored or not asked.verb.store or made_by != asked.program:
        return None
    if not storage.exists(storage.join(asked.place, RESULT_FILE)):
        return None
    result = Result.read(asked.place)
    return result if result.config_digest == asked.config.digest() else None


def _submit(jobs: Jobs, job: str, asked: Request) -> None:
    folder = _working_dir(asked.compute.working_dir)
    storage.remove(asked.folder)
    place = storage.join(asked.folder, "config.yaml")
    storage.write_bytes(place, yaml12.dump(asked.resolved).encode())
    # -P: the sources are those that were sent, not those of the folder that paths are relative to.
    command = ["python", "-P", "-m", f"{asked.prog.replace('-', '_')}.cli", asked.verb.name, place]
    for flag in asked.verb.flags:
        if (value := asked.flags[flag.name]) is not None:
            name = flag.name.replace("_", "-")
            command.append(str(value) if flag.positional else f"--{name}={value}")
    command.append(f"--{'store' if asked.stored else 'out'}={asked.place}")
    command.append(f"--record={storage.join(asked.folder, 'record.json')}")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S)}
    if data := storage.absolute(os.environ.get(DATA, "")):
        variables[DATA] = data
    runtime_env: Json = {"env_vars": variables}
    if folder:
        runtime_env |= {"working_dir": folder, "excludes": list(EXCLUDED)}
    entrypoint = f"cd {shlex.quote(os.getcwd())} 2>/dev/null; exec {shlex.join(command)}"
    metadata = {
        "program": asked.program,
        "prog": asked.prog,
        "verb": asked.verb.name,
        "config_digest": asked.config.digest(),
        "place": asked.place,
    }
    try:
        jobs.submit(job, entrypoint, runtime_env, metadata)
    except ConfigError:
        storage.remove(asked.folder)
        raise


def _working_dir(given: str) -> str:
    if given == "auto":
        above = Path(__file__).resolve().parents[2]
        return str(above) if (above / "pyproject.toml").exists() else ""
    if not given or storage.local_path(given) is None:
        return given
    folder = Path(given)
    if not folder.is_dir():
        raise ConfigError(
            "compute.working_dir must be a folder, a URI, empty or auto; there is no folder "
            f"{given}"
        )
    return str(folder.absolute())


def _record(asked: Request) -> Json | None:
    place = storage.join(asked.folder, "record.json")
    return json.loads(storage.read_bytes(place)) if storage.exists(place) else None


def _not_shared(asked: Request) -> str:
    return (
        f"{'--store' if asked.stored else '--out'} ({asked.place}) must be a folder that the "
        "cluster reaches by the same path, or s3://…; what the job wrote there is not here"
    )


def _raise_failed(asked: Request, job: str, info: Json, record: Json | None) -> None:
    code = info.get("driver_exit_code")
    if code is None:  # it did not come to run, or its node was lost
        message = str(info.get("message") or "no reason given").strip()
        _say(f"error: the job {job} failed ({info.get('error_type')}): {message}")
        raise Ended(FAULT)
    code = int(code) if int(code) >= 0 else 128 - int(code)
    if code == NOT_FOUND:
        raise ConfigError(
            f"the job {job} found no `python` on the cluster; start the cluster where the packages "
            "are installed and `python` is on the PATH (an activated environment)"
        )
    _say(f"job {job} ended with exit code {code}")
    if record is None:
        _say(_not_shared(asked))
    raise Ended(code)


def _stop(jobs: Jobs, job: str) -> None:
    _say(f"\nstopping the job {job} …")
    jobs.patience_s = STOPPED_S / 2
    try:
        if job not in jobs.named(job):
            _say("it was not submitted")
            return
        jobs.stop(job)
        until = time.monotonic() + STOPPED_S
        while jobs.info(job)["status"] not in ENDED:
            if time.monotonic() > until:
                _say(f"it is still stopping; see `ray job status {job} --address {jobs.address}`")
                return
            time.sleep(0.5)
    except ConfigError as error:
        _say(f"{error}\nstop it by `ray job stop {job} --address {jobs.address}`")
    else:
        _say("stopped")
