"""A verb as a job of a Ray cluster: `compute: {type: attached, address: http://HOST:8265}`.

The same verb is submitted to the dashboard's Jobs API with the resolved configuration, in which
`compute` then says "the cluster this runs in". The job's id follows from what is asked for, so the
same command finds the job of a client that died and follows it. Configuration and record travel
through a folder beside the output, which both sides must reach.
"""

import os
import shlex
import time
from pathlib import Path
from typing import cast

from rayrun import storage, yaml12
from rayrun.config import ConfigError, Json
from rayrun.ray.compute import AttachedCompute
from rayrun.ray.job_client import Jobs
from rayrun.ray.job_log import ENDED, follow
from rayrun.ray.request import ID_DIGITS, Request, Shown, Submitted, request, say
from rayrun.verb import Ended

__all__ = ["Request", "Submitted", "plan", "request", "run"]

STOPPED_S = 45.0
"""How long to wait for a job to stop; a step of a pipeline has 60 s."""

FAULT, NOT_FOUND = 1, 127
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


def plan(asked: Request) -> str:
    """What would be submitted, and where to; nothing is asked or sent."""
    return f"# job {asked.name} on {_compute(asked).address}\n{yaml12.dump(asked.resolved)}"


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
    jobs = Jobs(_compute(asked).address)
    known = jobs.named(asked.name)
    newest = max(known, key=_attempt, default="")
    state = str(known[newest]["status"]) if newest else ""
    if state == "SUCCEEDED" and (done := asked.standing(_made_by(known[newest]))):
        say(f"job {newest} has succeeded: {asked.place}")
        return Submitted({}, done)
    live = bool(newest) and state not in ENDED
    job = newest if live else asked.name + (f"-{_attempt(newest) + 1}" if newest else "")
    try:
        if live:
            say(f"following the job {job}, which is {state.lower()} on {jobs.address}")
        else:
            say(f"job {job} on {jobs.address}")
            _submit(jobs, job, asked)
        info = follow(jobs, job, Shown())
    except KeyboardInterrupt:
        _stop(jobs, job)
        storage.remove(asked.folder)
        raise
    record = asked.record()
    storage.remove(asked.folder)
    if info["status"] == "STOPPED":
        say(f"job {job} was stopped")
        raise KeyboardInterrupt
    if info["status"] == "FAILED":
        _raise_failed(asked, job, info, record)
    if record is None:
        raise ConfigError(asked.not_shared())
    return Submitted(record, None)


# ---------------------------------------------------------------------------------------------


def _attempt(job: str) -> int:
    last = job.rpartition("-")[2]
    return int(last) if last.isdecimal() and len(last) < ID_DIGITS else 1


def _made_by(info: Json) -> object:
    metadata: Json = info.get("metadata") or {}
    return metadata.get("program")


def _submit(jobs: Jobs, job: str, asked: Request) -> None:
    folder = _working_dir(_compute(asked).working_dir)
    asked.write()
    runtime_env: Json = {"env_vars": asked.variables}
    if folder:
        runtime_env |= {"working_dir": folder, "excludes": list(EXCLUDED)}
    entrypoint = f"cd {shlex.quote(os.getcwd())} 2>/dev/null; exec {shlex.join(asked.command)}"
    try:
        jobs.submit(job, entrypoint, runtime_env, asked.metadata)
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


def _compute(asked: Request) -> AttachedCompute:
    return cast(AttachedCompute, asked.compute)


def _raise_failed(asked: Request, job: str, info: Json, record: Json | None) -> None:
    code = info.get("driver_exit_code")
    if code is None:  # it did not come to run, or its node was lost
        message = str(info.get("message") or "no reason given").strip()
        say(f"error: the job {job} failed ({info.get('error_type')}): {message}")
        raise Ended(FAULT)
    code = int(code) if int(code) >= 0 else 128 - int(code)
    if code == NOT_FOUND:
        raise ConfigError(
            f"the job {job} found no `python` on the cluster; start the cluster where the packages "
            "are installed and `python` is on the PATH (an activated environment)"
        )
    say(f"job {job} ended with exit code {code}")
    if record is None:
        say(asked.not_shared())
    raise Ended(code)


def _stop(jobs: Jobs, job: str) -> None:
    say(f"\nstopping the job {job} …")
    jobs.patience_s = STOPPED_S / 2
    try:
        if job not in jobs.named(job):
            say("it was not submitted")
            return
        jobs.stop(job)
        until = time.monotonic() + STOPPED_S
        while jobs.info(job)["status"] not in ENDED:
            if time.monotonic() > until:
                say(f"it is still stopping; see `ray job status {job} --address {jobs.address}`")
                return
            time.sleep(0.5)
    except ConfigError as error:
        say(f"{error}\nstop it by `ray job stop {job} --address {jobs.address}`")
    else:
        say("stopped")
