"""A whole simulated cluster on virtual time, as tests of the launcher and of the simulation need it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.kube.api_server import ApiServer
from tests.kube.clocks import VirtualClock
from tests.kube.fake_kuberay import FakeKubeRay
from tests.kube.fake_plan import Plan

Json = Any


@dataclass
class Simulated:
    """Server, operator and clock."""

    server: ApiServer
    kuberay: FakeKubeRay
    clock: VirtualClock

    def after(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.sleep(seconds)

    def until(self, ready: Any, at_most_s: float = 600.0) -> None:
        """Let time pass until something is so; an error after `at_most_s`."""
        now = self.clock.now()
        assert self.clock.wait(ready, now + at_most_s), f"not so after {at_most_s:g} s"


@contextmanager
def simulated(
    definitions: list[Json], plan: Plan | None = None, seed: int = 0
) -> Iterator[Simulated]:
    """A cluster with KubeRay, whose jobs have the fate of `plan`."""
    clock = VirtualClock()
    with ApiServer(definitions=definitions, clock=clock, seed=seed) as server:
        kuberay = FakeKubeRay(server, plan)
        yield Simulated(server, kuberay, clock)
        assert server.failures == []
        assert kuberay.failures == []
