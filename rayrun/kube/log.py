"""The log of a RayJob over all its attempts: every line shown once, whatever heads and connections
do.

An attempt is one submission to one head: KubeRay submits again after it has replaced a lost head
(the same id, another start), and under another id on a new cluster. Within an attempt the position
in the log is kept, and what comes again is passed over up to there. What an attempt printed that
its head never served is one line that says so.
"""

from collections.abc import Callable

from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api
from rayrun.kube.dashboard import Dashboard
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.job_log import ENDED, Log, Tail
from rayrun.ray.request import say

ALREADY_S = 0.002
"""Real seconds for what has arrived to be taken from a connection."""
ASK_S = 5.0
"""Between two questions how the job is, and between two requests for the whole log where no
WebSocket gets through."""
QUIET_S, QUIETEST_S = 30.0, 480.0
"""A connection that says nothing for so long may be dead, and another one is made; each that brings
nothing new may be silent twice as long."""

REST_S, GONE_S = 120.0, 10.0
"""How long the rest of a log may take to come after the end of the job, while its head answers, and
while it does not."""

Attempt = tuple[str, str, int]
"""Cluster, submission id, start in milliseconds."""


class JobLog:
    """What a RayJob prints, taken in steps between which other things are done."""

    def __init__(self, api: Api, compute: KubeRayCompute, show: Callable[[str], None]) -> None:
        """`show` takes each line, without its line end."""
        self._api, self._compute, self._show = api, compute, show
        self.info: Json = {}
        """The newest answer about the job (`Dashboard.info`)."""
        self.attempts = 0
        """Submissions that have been seen."""
        self.dashboard: Dashboard | None = None
        self._attempt: Attempt | None = None
        self._whole = True
        self._log = Log(show)
        self._tail: Tail | None = None
        self._told = False
        self._asked = self._read = self._heard = float("-inf")
        self._quiet_s = QUIET_S

    @property
    def ended(self) -> bool:
        """The job of the newest attempt has ended, and all it printed was shown."""
        return self._whole and self._attempt is not None

    def step(self, status: Json) -> None:
        """Show what has been printed since; it returns at once.

        Args:
            status: of the RayJob.
        """
        try:
            self._step(status)
        except ConfigError as error:  # the job itself is well: once, and on
            if not self._told:
                self._told = True
                say(f"warning: the log of the job cannot be read: {error}")

    def finish(self, status: Json) -> None:
        """The last steps, of a job that has ended: what can still be had, or that it cannot."""
        if self._attempt is None and not status.get("dashboardURL"):
            return
        clock = self._api.clock
        until, heard, known = clock.now() + REST_S, clock.now(), self.info
        while not self.ended and not self._told:
            self._asked = self._read = float("-inf")
            self.info = {}
            self.step(status)
            now = clock.now()
            heard = now if self.info else heard
            if self.ended or now >= until or now - heard >= GONE_S:
                break
            clock.sleep(1.0)
        self.info = self.info or known
        self._give_up("with its head")
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._tail is not None:
            self._tail.close()
            self._tail = None

    # -----------------------------------------------------------------------------------------

    def _step(self, status: Json) -> None:
        cluster, job = str(status.get("rayClusterName", "")), str(status.get("jobId", ""))
        if not cluster or not job or not status.get("dashboardURL"):
            return
        now = self._api.clock.now()
        if self._tail is not None:
            self._receive(self._tail, now)
        if (self._tail is None and now - self._asked >= 1.0) or now - self._asked >= ASK_S:
            self._asked = now
            dashboard = Dashboard(self._api, self._compute, cluster)
            if not self._know(dashboard, cluster, job):
                self.close()
                return
            self.dashboard = dashboard
        if self._attempt is None or self._attempt[:2] != (cluster, job) or self._whole:
            return
        assert self.dashboard is not None
        if self.info.get("status") in ENDED:
            self._take_all(self.dashboard, cluster, job, last=True)
        elif self._tail is None:
            self._connect(self.dashboard, cluster, job, now)

    def _know(self, dashboard: Dashboard, cluster: str, job: str) -> bool:
        """Ask how the job is; a new attempt begins a new log."""
        info = dashboard.info(job)
        if info is None:
            return False
        found: Attempt = (cluster, job, int(info.get("start_time") or 0))
        if found != self._attempt:
            self._give_up("with its head")
            self.close()
            self._attempt, self._whole, self._log = found, False, Log(self._show)
            self._quiet_s, self._read = QUIET_S, float("-inf")
            self.attempts += 1
        self.info = info
        return True

    def _same(self, dashboard: Dashboard, cluster: str, job: str) -> bool:
        info = dashboard.info(job)
        known = self._attempt
        return info is not None and (cluster, job, int(info.get("start_time") or 0)) == known

    def _connect(self, dashboard: Dashboard, cluster: str, job: str, now: float) -> None:
        if now - self._read < ASK_S:
            return
        tail = dashboard.tail(job)
        opened = tail.open()
        # A head may have been replaced between the answer about it and the connection.
        if opened and self._same(dashboard, cluster, job):
            self._tail, self._heard = tail, now
            self._receive(tail, now)
            return
        tail.close()
        if not opened:
            self._take_all(dashboard, cluster, job, last=False)
            self._read = now

    def _receive(self, tail: Tail, now: float) -> None:
        before = self._log.position
        while (piece := tail.receive(ALREADY_S)) is not None:
            self._log.take(*piece)
        if self._log.position > before:
            self._heard, self._quiet_s = now, QUIET_S
        elif now - self._heard > self._quiet_s:
            self._quiet_s = min(2 * self._quiet_s, QUIETEST_S)
            self.close()
        if tail.ended:
            self.close()

    def _take_all(self, dashboard: Dashboard, cluster: str, job: str, *, last: bool) -> None:
        text = dashboard.log(job)
        if text is None or not self._same(dashboard, cluster, job):
            return
        self._log.take(0, text)
        if last:
            self._log.close()
            self._whole = True

    def _give_up(self, how: str) -> None:
        if self._whole or self._attempt is None:
            return
        self._log.close()
        self._whole = True
        self._show(f"(the rest of what attempt {self.attempts} printed was lost {how})")
