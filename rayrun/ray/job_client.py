"""The Jobs API of a Ray dashboard: requests with bounded patience, failures in one readable line.

Ray's own client submits, for it packs the working directory; it waits without end for an answer, so
all else is asked here. The API: `/api/version`, `/api/jobs/`, `/api/jobs/ID`, `…/stop`, `…/logs`.
"""

import contextlib
import importlib
import logging
import os
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from rayrun.config import ConfigError, Json

CONNECT_S = 5.0
"""How long the dashboard may take to accept the first connection."""
READ_S = 30.0
LOST_S = 300.0
"""How long a dashboard that has answered may be silent before its job is left alone."""

TOKEN, TOKEN_PATH, MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Environment variables that Ray's client puts above the address it is given."""


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Ask the dashboard at `http(s)://HOST:PORT` once.

        Raises:
            ConfigError: nothing answers, something else does, or the token is refused.
        """
        self.address = address.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if (token := token_of_ray()) else {}
        self.patience_s = LOST_S
        """How long a request may go without an answer."""
        self._requests: Any = importlib.import_module("requests")
        try:
            answer = self._ask("GET", "/api/version", CONNECT_S)
        except self._requests.RequestException as error:
            raise ConfigError(
                f"compute.address ({address}): nothing answers ({_reason(error)}); start a cluster "
                "with its dashboard (`ray start --head`, installed as ray[default]), or correct "
                "the address"
            ) from None
        self._check_allowed(answer)
        try:
            known = "ray_version" in answer.json()
        except ValueError:
            known = False
        if answer.status_code != 200 or not known:
            raise ConfigError(
                f"compute.address ({address}): what answers is no Ray dashboard with the Jobs API "
                f"(GET /api/version: {answer.status_code}); give the dashboard of the head, often "
                "port 8265, installed as ray[default]"
            )

    def named(self, prefix: str) -> dict[str, Json]:
        """Jobs whose submission id starts with `prefix`, by id."""
        found: list[Json] = self._patiently("GET", "/api/jobs/").json()
        ids = ((str(job.get("submission_id") or ""), job) for job in found)
        return {name: job for name, job in ids if name.startswith(prefix)}

    def info(self, job: str) -> Json:
        """What the cluster knows of a job: `status`, `driver_exit_code`, `message`, `metadata`.

        Raises:
            ConfigError: no answer for `patience_s`, or the cluster does not know the job.
        """
        answer = self._patiently("GET", f"/api/jobs/{job}")
        if answer.status_code == 404:
            raise ConfigError(
                f"compute.address ({self.address}): the cluster does not know the job {job} any "
                "more; it was restarted, or the job deleted: run again"
            )
        return answer.json()

    def submit(
        self, job: str, entrypoint: str, runtime_env: Json, metadata: Mapping[str, str]
    ) -> None:
        """Submit a job; if one of this id is there already, that is it.

        Raises:
            ConfigError: the working directory cannot be sent, or the cluster refuses the job.
        """
        submission: Any = importlib.import_module("ray.job_submission")
        try:
            with _undisturbed():
                client = submission.JobSubmissionClient(self.address, headers=self.headers)
                client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job,
                    runtime_env=runtime_env,
                    metadata=dict(metadata),
                )
        except (OSError, RuntimeError, ValueError) as error:
            if job in self.named(job):  # the answer was lost, or another client was first
                return
            folder = runtime_env.get("working_dir")
            raise ConfigError(
                f"compute.address ({self.address}): the job cannot be submitted: "
                f"{_last_line(error)}; compute.working_dir sends "
                + (f"{folder}: keep large files out of it by a .rayignore" if folder else "nothing")
            ) from error

    def stop(self, job: str) -> None:
        """Ask the cluster to stop a job; it need not have stopped when this returns."""
        self._patiently("POST", f"/api/jobs/{job}/stop")

    def log(self, job: str) -> str:
        """All that a job has printed.

        Raises:
            OSError: it cannot be had now.
        """
        answer = self._ask("GET", f"/api/jobs/{job}/logs", CONNECT_S)
        if answer.status_code != 200:
            raise OSError(f"{answer.status_code}: {_last_line(answer.text)}")
        return str(answer.json()["logs"])

    def _ask(self, method: str, path: str, connect_s: float) -> Any:
        return self._requests.request(
            method, self.address + path, headers=self.headers, timeout=(connect_s, READ_S)
        )

    def _patiently(self, method: str, path: str) -> Any:
        until, wait_s = time.monotonic() + self.patience_s, 0.25
        while True:
            try:
                answer = self._ask(method, path, CONNECT_S)
                if answer.status_code < 500:
                    self._check_allowed(answer)
                    return answer
                why = f"{answer.status_code}: {_last_line(answer.text)}"
            except self._requests.RequestException as error:
                why = _reason(error)
            if time.monotonic() > until:
                raise ConfigError(
                    f"compute.address ({self.address}): no answer for {self.patience_s:g} s "
                    f"({why}); what runs there goes on: run the same command again to follow it"
                )
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)

    def _check_allowed(self, answer: Any) -> None:
        if answer.status_code not in (401, 403):
            return
        found = "a token was sent, and is not the cluster's" if self.headers else "none is set"
        raise ConfigError(
            f"compute.address ({self.address}): the cluster wants its token "
            f"({answer.status_code}), {found}; set {TOKEN}, or {TOKEN_PATH} to a file with it"
        )


def token_of_ray() -> str:
    """As Ray finds it: the variable, the file that is named, the default file in mode `token`.

    Raises:
        ConfigError: the file that is named cannot be read.
    """
    if token := os.environ.get(TOKEN, "").strip():
        return token
    named = os.environ.get(TOKEN_PATH, "")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if not named and (os.environ.get(MODE) != "token" or not file.exists()):
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{TOKEN_PATH} must name a file with the token of the cluster, found {file} "
            f"({_reason(error)})"
        ) from None


@contextlib.contextmanager
def _undisturbed() -> Generator[None]:
    """Ray's client without its talk, and without the addresses it would prefer to ours."""
    before = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        os.environ.update(before)


def _reason(error: BaseException) -> str:
    """The innermost cause, without the objects that urllib3 prints."""
    seen: BaseException = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    text = getattr(seen, "strerror", None) or str(seen) or type(seen).__name__
    return str(text).splitlines()[0]


def _last_line(error: object) -> str:
    """The line of a traceback that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1].rstrip(".") if lines else type(error).__name__
