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
    place: str = ""
    """Where outputs lie that pods share with the launcher."""

    real = False
    namespace = "default"
    image = "example.com/infnet:1"

    @property
    def compute(self) -> Json:
        """What jobs here need beside what a test asks for."""
        return {"volumes": [{"claim": "shared", "mount_path": self.place}]}

    def after(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.sleep(seconds)

    def until(self, ready: Any, at_most_s: float = 600.0) -> None:
        """Let time pass until something is so; an error after `at_most_s`."""
        now = self.clock.now()
        assert self.clock.wait(ready, now + at_most_s), f"not so after {at_most_s:g} s"

    def pods(self, role: str = "") -> list[str]:
        """Names of Ray's pods, of a role."""
        return self.kuberay.pods(role, self.namespace)

    def kill(self, role: str) -> None:
        """The first pod of a role is deleted by force."""
        self.kuberay.kill(role, self.namespace)

    def jobs(self) -> list[Json]:
        """The RayJobs that are there."""
        return self.server.store.of(("ray.io", "rayjobs"), self.namespace)

    def objects(self) -> list[str]:
        """What of ours is there, as `Kind/name`, sorted."""
        return self.server.objects(namespace=self.namespace)


@contextmanager
def simulated(
    definitions: list[Json], plan: Plan | None = None, seed: int = 0, place: str = ""
) -> Iterator[Simulated]:
    """A cluster with KubeRay, whose jobs have the fate of `plan`."""
    clock = VirtualClock()
    with ApiServer(definitions=definitions, clock=clock, seed=seed) as server:
        kuberay = FakeKubeRay(server, plan)
        yield Simulated(server, kuberay, clock, place)
        assert server.failures == []
        assert kuberay.failures == []
