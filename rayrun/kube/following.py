"""A RayJob from its creation to its end: its states told, its log shown, its pods looked after."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api, part
from rayrun.kube.evidence import Evidence
from rayrun.kube.log import JobLog
from rayrun.kube.trouble import Trouble, Watched
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.request import say

RAYJOBS = "rayjobs.ray.io"
TICK_S = 1.0
"""Between two looks at the log."""
STATUS_S = 5.0
"""Between two looks at a job that runs."""
CHANGE_S = 10.0
"""How long a change is waited for, of a job that does not run."""
PODS_S = 10.0
"""Between two looks at the pods."""
STUCK_S = 60.0
"""How long pods may be kept from starting by what does not mend itself, as a rule."""
SILENT_S = 60.0
RECENT = 200
"""Lines of a log that are kept with a failure."""
BAD_INPUT = 2

Outcome = Literal["succeeded", "failed", "stopped", "gone"]
State = Literal[
    "queued", "new", "starting", "running", "retrying", "succeeded", "failed", "stopped"
]


@dataclass(frozen=True)
class End:
    """How a job ended."""

    outcome: Outcome
    job: Json
    """As it was last seen."""
    exit_code: int | None = None
    """Of the command, if it failed and has one."""


def state_of(job: Json) -> State:
    """What KubeRay says of a job."""
    status = part(job, "status")
    deployed, ray = str(status.get("jobDeploymentStatus", "")), str(status.get("jobStatus", ""))
    if deployed == "Complete":
        return "stopped" if ray == "STOPPED" else "failed" if ray == "FAILED" else "succeeded"
    if deployed in ("Failed", "ValidationFailed"):
        return "failed"
    if deployed in ("Suspended", "Suspending") or part(job, "spec").get("suspend"):
        return "queued"
    if deployed in ("Running", "Retrying"):
        return "running" if deployed == "Running" else "retrying"
    return "starting" if deployed else "new"


class Following:
    """One job, followed by one launcher."""

    def __init__(
        self, api: Api, compute: KubeRayCompute, above: str, name: str, show: Callable[[str], None]
    ) -> None:
        """Nothing is asked.

        Args:
            api: of the namespace.
            compute: what was asked for.
            above: what the output lies in.
            name: of the job.
            show: takes each line of the log.
        """
        self._api, self._compute, self._name = api, compute, name
        self.recent: deque[str] = deque(maxlen=RECENT)
        self._show = show
        self.log = JobLog(api, compute, self._line)
        self.watched = Watched(api, compute)
        self.evidence = Evidence(api, self.watched, above, name)
        self._state = ""
        self._kept_of = 0
        self._looked = float("-inf")
        self._begun = self._asked = api.clock.now()
        self._stuck: float | None = None
        self._said: set[str] = set()

    def to_the_end(self, job: Json) -> End:
        """Follow it; a job that is there no more has been removed by somebody.

        Raises:
            ConfigError: its pods cannot start, for a reason that does not pass.
            Lost: the API gave no answer for too long.
        """
        try:
            return self._follow(job)
        finally:
            self.log.close()

    def _follow(self, job: Json) -> End:
        clock = self._api.clock
        while True:
            status, state = part(job, "status"), state_of(job)
            self._tell(job, state)
            if state in ("succeeded", "failed", "stopped"):
                self.log.finish(status)
                code = self._exit_code()
                if state == "failed" and code != BAD_INPUT:
                    self._keep(job)
                    self.evidence.state(job)
                return End(cast(Outcome, state), job, code)
            if state == "running":
                self.log.step(status)
                self._look(status)
                if self.log.info.get("status") == "FAILED" and self.log.ended:
                    if self._exit_code() == BAD_INPUT:  # its one error line says all
                        return End("failed", job, BAD_INPUT)
                    self._keep(job)  # before KubeRay removes the cluster for another attempt
                if self.log.ended:
                    found = self._api.after(RAYJOBS, job, STATUS_S)
                elif clock.now() - self._asked >= STATUS_S:
                    found = self._get(job)
                else:
                    clock.sleep(TICK_S)
                    continue
            else:
                if state in ("new", "starting"):
                    self._check_start(job, state)
                else:
                    self._stuck, self._begun = None, clock.now()
                if state == "retrying":
                    self._keep(job)
                found = self._api.after(RAYJOBS, job, CHANGE_S)
            self._asked = clock.now()
            if found is None or found["metadata"]["uid"] != job["metadata"]["uid"]:
                self.log.finish(status)
                return End("gone", job, self._exit_code())
            job = found

    # -----------------------------------------------------------------------------------------

    def _line(self, line: str) -> None:
        self.recent.append(line)
        self.watched.hear(line)
        self._show(line)

    def _get(self, job: Json) -> Json | None:
        return self._api.get(RAYJOBS, str(job["metadata"]["name"]))

    def _exit_code(self) -> int | None:
        if self.log.info.get("status") != "FAILED":
            return None
        code = self.log.info.get("driver_exit_code")
        return None if code is None else int(code) if int(code) >= 0 else 128 - int(code)

    def _tell(self, job: Json, state: State) -> None:
        failed = int(part(job, "status").get("failed") or 0)
        told = f"{state} {failed}"
        if told == self._state:
            return
        self._state = told
        where = f"job {self._name} in {self._api.namespace}"
        if state == "queued":
            say(f"{where}: waiting in the queue {self._compute.queue}")
        elif state == "starting":
            again = f" again, on a new cluster (attempt {failed + 1})" if failed else ""
            say(f"{where}: starting{again}")
        elif state == "running":
            say(f"{where}: running on {part(job, 'status').get('rayClusterName')}")
        elif state == "retrying":
            of = self._compute.backoff_limit + 1
            code = self._exit_code()
            why = str(part(job, "status").get("message") or "no reason given").splitlines()[0]
            why = why if code is None else f"exit code {code}"
            say(f"{where}: attempt {failed} of {of} failed ({why})")

    def _look(self, status: Json) -> None:
        now = self._api.clock.now()
        if now - self._looked >= PODS_S:
            self._looked = now
            self.watched.look(self.watched.pods(str(status.get("rayClusterName", ""))))

    def _check_start(self, job: Json, state: State) -> None:
        now = self._api.clock.now()
        if state == "new":
            if now - self._begun >= SILENT_S:
                self._say_once(
                    f"warning: KubeRay's operator has not looked at the job for {SILENT_S:g} s; "
                    "does it run? kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator"
                )
            return
        if now - self._looked < PODS_S:
            return
        self._looked = now
        cluster = str(part(job, "status").get("rayClusterName", ""))
        pods = self.watched.pods(cluster)
        self.watched.look(pods)
        ready = self.watched.ready(pods)
        if pods:
            self._say_once(f"job {self._name}: {ready} of {self._wanted()} pods ready")
        found = self.watched.trouble(self._name, cluster, pods)
        self._weigh(job, found, now)

    def _weigh(self, job: Json, found: Trouble | None, now: float) -> None:
        if found is None:
            self._stuck = None
            return
        self._say_once(f"{'waiting' if found.waits else 'warning'}: {found.text}")
        if found.waits:
            self._stuck = None
            return
        self._stuck = now if self._stuck is None else self._stuck
        if now - self._stuck >= STUCK_S:
            self.evidence.keep(job, self.log, self.recent)
            raise ConfigError(self.evidence.summary(found.text, self.recent))

    def _wanted(self) -> int:
        compute = self._compute
        return 1 if compute.single_pod else 1 + compute.workers // compute.workers_per_pod

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            say(line)

    def _keep(self, job: Json) -> None:
        """Once for each attempt."""
        attempt = max(1, self.log.attempts)
        if attempt > self._kept_of:
            self._kept_of = attempt
            self.evidence.keep(job, self.log, self.recent)
