"""The dashboard of a simulated head: its Jobs API and the part of its Serve API that KubeRay asks."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.kube.api_answers import ApiError
from tests.kube.api_routes import Answer, Request
from tests.kube.api_websocket import Feed
from tests.kube.clocks import Clock
from tests.kube.fake_plan import Plan, Submission

Json = Any

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
JOB = re.compile(r"^/api/jobs/([^/]+)(?:/(stop|logs|logs/tail))?/?$")


@dataclass
class Job:
    """A submitted job: what it has printed follows from the time."""

    request: Json
    fate: Submission
    name: str
    """Stands in every line."""
    begun: float
    pending_s: float
    stopped: float | None = None

    def status(self, now: float) -> str:
        if self.stopped is not None:
            return "STOPPED"
        if now < self.begun:
            return "PENDING"
        return self.fate.outcome if now >= self.begun + self.fate.lasts_s else "RUNNING"

    def ended(self, now: float) -> float | None:
        if self.stopped is not None:
            return self.stopped
        return self.begun + self.fate.lasts_s if self.status(now) in ENDED else None

    def log(self, now: float) -> str:
        until = now if self.stopped is None else min(now, self.stopped)
        return self.fate.text(self.name, max(0.0, until - self.begun))

    def readable(self, now: float) -> bool:
        return not any(a <= now - self.begun < b for a, b in self.fate.unread_s)

    def info(self, now: float) -> Json:
        status, ended = self.status(now), self.ended(now)
        message = {
            "PENDING": "Job has not started yet. It may be waiting for the runtime environment to "
            "be set up.",
            "RUNNING": "Job is currently running.",
            "SUCCEEDED": "Job finished successfully.",
            "STOPPED": "Job was intentionally stopped.",
        }.get(
            status,
            f"Job entrypoint command failed with exit code {self.fate.exit_code}, last available "
            f"logs (truncated to 20,000 chars):\n{self.log(now)[-20000:]}",
        )
        codes = {"SUCCEEDED": 0, "FAILED": self.fate.exit_code}
        return {
            "type": "SUBMISSION",
            "job_id": None if status == "PENDING" else "02000000",
            "submission_id": self.request["submission_id"],
            "driver_info": None,
            "status": status,
            "entrypoint": self.request["entrypoint"],
            "message": message,
            "error_type": None,
            "start_time": int((self.begun - self.pending_s) * 1000),
            "end_time": None if ended is None else int(ended * 1000),
            "metadata": self.request.get("metadata") or {},
            "runtime_env": self.request.get("runtime_env") or {},
            "driver_agent_http_address": None,
            "driver_node_id": None,
            "driver_exit_code": codes.get(status),
        }


@dataclass
class Head:
    """One head process and what it remembers: a new one knows nothing of the old one's jobs."""

    name: str
    clock: Clock
    plan: Plan
    next_submission: Callable[[], int]
    token: str = ""
    submitted: Callable[["Head", "Job"], None] | None = None
    """Told of every job."""
    jobs: dict[str, Job] = field(default_factory=dict)
    serve: Json = None
    """What Serve was told to run."""
    serve_since: float = 0.0
    serve_starts_s: float = 3.0
    gone: bool = False
    gone_at: float = float("inf")

    def submit(self, request: Json) -> str:
        """A job under its submission id.

        Raises:
            ApiError: 500, the id is taken.
        """
        name = request["submission_id"]
        if name in self.jobs:
            text = f"Job with submission_id {name} already exists. Please use a different submission_id."
            raise ApiError(500, text, text=text)
        count = self.next_submission()
        begun = self.clock.now() + self.plan.pending_s
        fate = self.plan.submission(count)
        self.jobs[name] = Job(request, fate, f"{self.name}/{count}", begun, self.plan.pending_s)
        if self.submitted is not None:
            self.submitted(self, self.jobs[name])
        return name

    def stop(self, name: str) -> bool:
        job, now = self.jobs[name], self.clock.now()
        if job.status(now) in ENDED:
            return False
        job.stopped = now
        return True

    def answer(self, request: Request) -> Answer:
        """A request to the dashboard, as through the service proxy."""
        sent = request.headers.get("authorization") or request.headers.get("x-ray-authorization")
        if self.token and sent != f"Bearer {self.token}":
            missing = "Unauthorized: Missing authentication token"
            wrong = "Forbidden: Invalid authentication token"
            code, text = (403, wrong) if sent else (401, missing)
            raise ApiError(code, text, text=text)
        path = request.path.rstrip("/")
        if path == "/api/version":
            return Answer({"version": "4", "ray_version": "2.60.0", "ray_commit": "0" * 40})
        if path == "/api/jobs" and request.method == "POST":
            wanted = json.loads(request.body)
            name = self.submit(wanted)
            return Answer({"job_id": name, "submission_id": name})
        now = self.clock.now()
        if path == "/api/jobs":
            return Answer([job.info(now) for job in self.jobs.values()])
        if path == "/api/serve/applications":
            return Answer({"applications": self.applications(now)})
        if path.startswith("/api/v0/"):
            return self._state(path, request.query)
        match = JOB.match(request.path)
        if match is None:
            raise ApiError(404, "404: Not Found", text="404: Not Found")
        return self._job(match[1], match[2], request, now)

    def applications(self, now: float) -> dict[str, Json]:
        """Of Serve, by name, as /api/serve/applications/ says them."""
        status = "RUNNING" if now >= self.serve_since + self.serve_starts_s else "DEPLOYING"
        return {
            one["name"]: {
                "name": one["name"],
                "status": status,
                "message": "",
                "route_prefix": one.get("route_prefix", "/"),
                "deployments": {"Application": {"status": "HEALTHY", "message": ""}},
                "deployed_app_config": one,
            }
            for one in (self.serve or {}).get("applications", [])
        }

    def _state(self, path: str, query: dict[str, str]) -> Answer:
        """The part of Ray's state API that tells what workers wrote to stderr."""
        node = "0" * 56
        if path == "/api/v0/nodes":
            found: Json = {"total": 1, "result": [{"node_id": node, "state": "ALIVE"}]}
        elif path == "/api/v0/logs":
            found = {"worker_err": ["worker-1-02000000-77.err"]}
        elif path == "/api/v0/logs/file" and query.get("node_id") == node:
            return Answer(text=f"\x01a worker of {self.name} says why\n".encode())
        else:
            raise ApiError(404, "404: Not Found", text="404: Not Found")
        return Answer({"result": True, "msg": "", "data": {"result": found}})

    def _feed(self, job: Job, opened: float) -> Feed:
        def fed() -> tuple[str, str]:
            now = self.clock.now()
            drops = (job.begun + at for at in job.fate.tail_drops_s)
            if self.gone or not job.readable(now) or any(opened < at <= now for at in drops):
                return "", "broken"
            return job.log(now), "ended" if job.status(now) in ENDED else "open"

        return fed

    def _job(self, name: str, action: str | None, request: Request, now: float) -> Answer:
        job = self.jobs.get(name)
        if job is None:
            text = f"Job {name} does not exist"
            raise ApiError(404, text, text=text)
        if action == "stop" and request.method == "POST":
            return Answer({"stopped": self.stop(name)})
        if action == "logs/tail":
            if "websocket" not in request.headers.get("upgrade", ""):
                raise ApiError(400, "No WebSocket UPGRADE hdr", text="No WebSocket UPGRADE hdr")
            return Answer(feed=self._feed(job, now))
        if action == "logs":
            if not job.readable(now):
                text = "Traceback (most recent call last):\nTimeoutError: agent did not answer"
                raise ApiError(500, text, text=text)
            return Answer({"logs": job.log(now)})
        if request.method == "DELETE":
            del self.jobs[name]
            return Answer({"deleted": True})
        return Answer(job.info(now))
