"""Random fault schedules for the launcher, and what must be so after each of them."""

import json
import random
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kube.api_faults import Fault
from tests.kube.clocks import VirtualClock
from tests.kube.fake_dashboard import ENDED
from tests.kube.fake_plan import Plan, Start, Submission
from tests.kube.simulated import Simulated

Json = Any

BACKOFF = 2
START_DEADLINE_S = 150
OUTAGE_S = 120.0
MARKER = re.compile(r"^\(the rest of what attempt (\d+) printed was lost .+\)$")
LINE = re.compile(r"^\[([^\]]+)\] ")
CODES = (500, 503, 504, 429, 409)


@dataclass
class Schedule:
    """What happens to one launcher and its job."""

    seed: int
    plan: Plan
    queue: str = ""
    faults: list[Fault] = field(default_factory=list)
    """Their times count from the begin."""
    outage_s: float | None = None
    """When the API is gone for two minutes."""
    outage_at_end_s: float | None = None
    """The same, so long after the job has ended well."""
    expires_s: tuple[float, ...] = ()
    """When watches lose their history."""
    token_s: float | None = None
    """When the token is no good any more; the next one is in the kubeconfig 10 s later."""

    def exit_codes(self) -> set[int]:
        """How the command may end: one way, but where the API is away when the job says why."""
        start = self.plan.start
        if start.kind and start.until_s > START_DEADLINE_S:
            return {2}
        found: set[int] = set()
        failed = count = 0
        while True:
            fate = self.plan.submission(count)
            count += 1
            if fate.head_lost_s is not None and fate.head_lost_s < fate.lasts_s:
                continue
            if fate.outcome == "SUCCEEDED":
                return found | {0}
            failed += 1
            if fate.exit_code == 2:
                found.add(2)
                if not self._hides_the_end(fate):
                    return found
            if failed > BACKOFF:
                return found | {fate.exit_code}

    def _hides_the_end(self, fate: Submission) -> bool:
        """Whether the launcher may miss how an attempt ended, before its cluster is gone."""
        return bool(self.faults or self.outage_s is not None or self.token_s is not None)


def random_schedule(seed: int) -> Schedule:
    """The same one for the same seed."""
    chance = random.Random(seed)
    schedule = Schedule(seed, random_plan(chance))
    if chance.random() < 0.2:
        schedule.queue = "team"
        schedule.plan.queued_s = chance.uniform(0, 400)
    for _ in range(chance.choice((0, 0, 1, 2, 4))):
        schedule.faults.append(random_fault(chance))
    if chance.random() < 0.15:
        schedule.outage_s = chance.uniform(1, 90)
    elif chance.random() < 0.1:
        schedule.outage_at_end_s = chance.uniform(0, 8)
    if chance.random() < 0.4:
        schedule.expires_s = tuple(sorted(chance.uniform(0, 60) for _ in range(3)))
    if chance.random() < 0.15:
        schedule.token_s = chance.uniform(1, 60)
    return schedule


def random_plan(chance: random.Random) -> Plan:
    """The fate of a job."""
    plan = Plan([random_submission(chance) for _ in range(chance.randint(1, 4))])
    # The last one holds for all that come after it: it must end.
    plan.submissions[-1].head_lost_s = None
    plan.pod_starts_s = chance.uniform(0.5, 20)
    plan.slow_delete_s = chance.choice((0.0, 0.0, 0.0, chance.uniform(1, 25)))
    if chance.random() < 0.2:
        kind = chance.choice(("image", "unschedulable", "quota"))
        until = chance.choice((chance.uniform(1, 25), float("inf")))
        plan.start = Start(kind, until, chance.choice(("head", "worker")))
    return plan


def random_submission(chance: random.Random) -> Submission:
    lines, every = chance.randint(0, 30), chance.choice((0.3, 1.0, 2.5))
    fate = Submission(lines, every)
    if chance.random() < 0.3:
        fate.outcome, fate.exit_code = "FAILED", chance.choice((1, 1, 137, 2))
    if chance.random() < 0.3:
        fate.head_lost_s = chance.uniform(0, lines * every)
    if chance.random() < 0.2:
        fate.worker_oom_s = chance.uniform(0, lines * every)
    fate.tail_drops_s = tuple(chance.uniform(0, 40) for _ in range(chance.choice((0, 1, 5))))
    if chance.random() < 0.25:
        at = chance.uniform(0, lines * every)
        fate.unread_s = ((at, at + chance.uniform(1, 15)),)
    return fate


def random_fault(chance: random.Random) -> Fault:
    kind = chance.choice((*CODES, "drop", "lose", "delay"))
    method = chance.choice(("", "GET", "POST", "WATCH", "DELETE"))
    path = chance.choice(("", "rayjobs", "rayjobs", "proxy", "pods", "events"))
    skip, times = chance.choice((0, 0, 1, 3, 10)), chance.choice((1, 1, 2, 5))
    return Fault(kind, method, path, skip=skip, times=times, seconds=chance.uniform(0.1, 20))


def arrange(schedule: Schedule, cluster: Simulated, write_token: Callable[[], str]) -> None:
    """Put a schedule's faults into a cluster.

    Args:
        schedule: what is to happen.
        cluster: with the schedule's plan.
        write_token: puts a new token into the kubeconfig, and says which one was there.
    """
    begin = cluster.clock.now()
    if schedule.outage_s is not None:
        at = begin + schedule.outage_s
        cluster.server.faults.outage(at, at + OUTAGE_S)
    for fault in schedule.faults:
        cluster.server.faults.add(fault)
    for at in schedule.expires_s:
        cluster.clock.call_at(begin + at, cluster.server.store.expire)
    if schedule.token_s is not None:
        at = begin + schedule.token_s

        def renew() -> None:
            old = write_token()
            cluster.server.expire(old)  # if it still was any good

        cluster.clock.call_at(at, lambda: cluster.server.access.tokens.clear())
        cluster.clock.call_at(at + 10.0, renew)


class Killed(BaseException):
    """The launcher's process is gone: nothing that follows is done."""


class MortalClock:
    """A launcher's clock that kills it at its n-th look at the time."""

    def __init__(self, clock: VirtualClock, looks: float) -> None:
        self._clock, self._left = clock, looks

    def now(self) -> float:
        self._live()
        return self._clock.now()

    def sleep(self, seconds: float) -> None:
        self._live()
        self._clock.sleep(seconds)

    def _live(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed


def and_an_outage(
    schedule: Schedule, cluster: Simulated, end: Callable[[Json, Submission, str], None]
) -> Callable[[Json, Submission, str], None]:
    """`end`, and the API is gone soon after."""

    def ended(request: Json, fate: Submission, status: str) -> None:
        end(request, fate, status)
        if status == "SUCCEEDED" and schedule.outage_at_end_s is not None:
            at = cluster.clock.now() + schedule.outage_at_end_s
            cluster.server.faults.outage(at, at + OUTAGE_S)

    return ended


def leave_result(config_digest: str) -> Callable[[Json, Submission, str], None]:
    """What a real command leaves at its output and as its record when it ends."""

    def end(request: Json, fate: Submission, status: str) -> None:
        words = shlex.split(request["entrypoint"])
        flags = dict(word.split("=", 1) for word in words if word.startswith("--"))
        code = 0 if status == "SUCCEEDED" else fate.exit_code
        out, record = Path(flags["--out"]), Path(flags["--record"])
        if code == 0:
            out.mkdir(parents=True, exist_ok=True)
            result = {
                "verb": words[words.index("-m") + 2],
                "config_digest": config_digest,
                "wall_s": 1.0,
                "peak_memory_bytes": 1,
            }
            (out / "result.json").write_text(json.dumps(result))
        if record.parent.is_dir():
            record.write_text(json.dumps({"exit_code": code, "uri": str(out)}))

    return end


def check_lines(cluster: Simulated, shown: list[str]) -> list[str]:
    """What is wrong with the lines that one launcher has shown: lost, doubled, or out of order."""
    now, wrong = cluster.clock.now(), list[str]()
    jobs = {
        job.name: (head, job)
        for head in cluster.kuberay.clusters.all_heads
        for job in head.jobs.values()
    }
    order, segments = list(jobs), _segments(shown)
    names = [name for name, _, _ in segments if name]
    if strangers := [name for name in names if name not in jobs]:
        return [f"no submission printed {strangers}"]
    if names != sorted(names, key=order.index):
        wrong.append(f"out of order or doubled: {names}, printed as {order}")
    if len(set(names)) != len(names):
        wrong.append(f"shown twice: {names}")
    for name, lines, marked in segments:
        if not name:
            continue
        head, job = jobs[name]
        until = min(now, head.gone_at)
        text, found = job.log(until), "\n".join(lines)
        whole = found == text.removesuffix("\n")
        if not text.startswith(found):
            wrong.append(f"{name}: not the beginning of what was printed: {lines[-3:]}")
        elif not whole and not marked:
            wrong.append(f"{name}: {len(text) - len(found)} characters lost without a word")
        ended = job.ended(until)
        alive_s = head.gone_at - ended if ended is not None else 0.0
        if marked and not whole and ended is not None and alive_s > 60:
            state = job.status(until)
            wrong.append(f"{name}: lost after it {state in ENDED and state}, {alive_s:g} s alive")
    return wrong


def _segments(shown: list[str]) -> list[tuple[str, list[str], bool]]:
    """Runs of lines of one submission, each with whether the marker follows."""
    found: list[tuple[str, list[str], bool]] = []
    for line in shown:
        if MARKER.match(line):
            name, lines, _ = found.pop() if found else ("", [], False)
            found.append((name, lines, True))
            continue
        match = LINE.match(line)
        name = match[1] if match else (found[-1][0] if found else "")
        if not found or found[-1][0] != name or found[-1][2]:
            found.append((name, [], False))
        found[-1][1].append(line)
    return found
