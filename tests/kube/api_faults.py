"""Faults of the API server, by rule: answers, dropped connections, outages."""

import re
from dataclasses import dataclass, field

from tests.kube.api_answers import ApiError
from tests.kube.api_websocket import Feed
from tests.kube.clocks import Clock

WORDS = {
    401: "Unauthorized",
    409: (
        "Operation cannot be fulfilled: the object has been modified; please apply your changes to "
        "the latest version and try again"
    ),
    410: "The provided continue parameter is too old to display a consistent list result.",
    429: "Too many requests, please try again later.",
    500: "Internal error occurred: etcdserver: request timed out",
    503: "the server is currently unable to handle the request",
    504: "Timeout: request did not complete within the allotted timeout",
}


@dataclass
class Fault:
    """What goes wrong with which requests."""

    kind: int | str
    """A status code; `drop`: no answer, nothing done; `lose`: done, but no answer; `delay`."""
    method: str = ""
    """GET, POST, … or WATCH; empty: any."""
    path: str = ""
    """A regular expression that is searched in the path."""
    skip: int = 0
    """How many matching requests pass before."""
    times: float = 1
    """How many matching requests it hits; infinity: all."""
    since: float = 0.0
    until: float = float("inf")
    """In which time it holds."""
    seconds: float = 0.0
    """Of a delay."""
    hits: int = field(default=0, compare=False)

    def hits_now(self, method: str, path: str, now: float) -> bool:
        if self.times <= 0 or not self.since <= now < self.until:
            return False
        if self.method not in ("", method) or not re.search(self.path, path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        self.hits += 1
        return True


class Dropped(Exception):
    """The connection ends without an answer."""


class Faults:
    """The rules of one server; the first that fits holds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rules: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        self.rules.append(fault)
        return fault

    def outage(self, since: float, until: float) -> Fault:
        """Nobody gets an answer from one time to another."""
        return self.add(Fault("drop", times=float("inf"), since=since, until=until))

    def within(self, feed: Feed) -> Feed:
        """A feed that breaks when an outage begins."""

        def fed() -> tuple[str, str]:
            now = self.clock.now()
            endless = (r for r in self.rules if r.kind == "drop" and r.times == float("inf"))
            out = any(rule.since <= now < rule.until for rule in endless)
            text, state = feed()
            return text, "broken" if out else state

        return fed

    def before(self, method: str, path: str) -> bool:
        """Strike before a request is handled; says whether its answer will be lost.

        Raises:
            Dropped: no answer.
            ApiError: the answer of a fault.
        """
        now = self.clock.now()
        fault = next((f for f in self.rules if f.hits_now(method, path, now)), None)
        if fault is None:
            return False
        if fault.kind == "drop":
            raise Dropped
        if fault.kind == "lose":
            return True
        if fault.kind == "delay":
            self.clock.sleep(fault.seconds)
            return False
        code = int(fault.kind)
        headers = {"Retry-After": "1"} if code == 429 else {}
        raise ApiError(code, WORDS.get(code, f"fault {code}"), headers=headers)
