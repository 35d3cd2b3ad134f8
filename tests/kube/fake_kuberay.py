"""KubeRay's operator, Kueue and a node, simulated: objects go through the states of the real ones.

Everything happens on the server's clock, in answer to changes of objects and at times; nothing polls
where the operator does not.
"""

from collections.abc import Callable
from typing import Any

from tests.kube.api_answers import ApiError
from tests.kube.api_resources import Resource
from tests.kube.api_server import ApiServer
from tests.kube.api_store import Change, Key
from tests.kube.fake_cluster import CLUSTERS, FakeClusters
from tests.kube.fake_job import JOBS, FakeJobs
from tests.kube.fake_kubelet import PODS, FakeKubelet
from tests.kube.fake_plan import Plan
from tests.kube.fake_service import SERVICES_OF_RAY, FakeServices

Json = Any

NOTICE_S = 0.1
"""From a change to the round that it causes."""
QUEUE = "kueue.x-k8s.io/queue-name"
HOLD = "slow.example.com/hold"


class FakeKubeRay:
    """The operator of one simulated cluster."""

    def __init__(self, server: ApiServer, plan: Plan | None = None) -> None:
        self.server = server
        self.clock = server.clock
        self.store = server.store
        self.plan = plan or Plan()
        self.kubelet = FakeKubelet(server, self.plan)
        self.clusters = FakeClusters(server, self.plan, self.kubelet)
        self.jobs = FakeJobs(self.clusters)
        self.services = FakeServices(self.clusters)
        self.failures: list[Exception] = []
        """Errors in the simulation itself; a test should find none."""
        self._due: dict[tuple[Key, str, str], float] = {}
        server.routes.writes.admit.append(self._admit)
        self.store.listeners.append(self._heard)

    def pods(self, role: str = "", namespace: str = "") -> list[str]:
        """Names of Ray's pods, of a role."""
        return [
            pod["metadata"]["name"]
            for pod in self.store.of(PODS, namespace)
            if role in ("", pod["metadata"].get("labels", {}).get("ray.io/node-type"))
        ]

    def kill(self, role: str, namespace: str = "default") -> None:
        """The first pod of a role is deleted by force."""
        self.kubelet.kill(self.pods(role, namespace)[0], namespace)

    def _admit(self, resource: Resource, thing: Json) -> None:
        """Kueue suspends what has a queue, until there is room."""
        if resource.key != JOBS or not thing["metadata"].get("labels", {}).get(QUEUE):
            return
        thing["spec"]["suspend"] = True
        space, name = thing["metadata"]["namespace"], thing["metadata"]["name"]

        def release() -> None:
            found = self.store.find(JOBS, space, name)
            if found is not None and "deletionTimestamp" not in found["metadata"]:
                self.store.edit(JOBS, space, name, lambda one: one["spec"].update(suspend=False))

        self.clock.call_at(self.clock.now() + self.plan.queued_s, release)

    def _heard(self, change: Change) -> None:
        meta = change.thing["metadata"]
        space, name = meta.get("namespace", ""), meta["name"]
        if change.key in (JOBS, CLUSTERS, SERVICES_OF_RAY):
            self._soon(change.key, space, name, NOTICE_S)
        for owner in meta.get("ownerReferences") or ():
            key = {"RayCluster": CLUSTERS, "RayJob": JOBS, "RayService": SERVICES_OF_RAY}.get(
                owner["kind"]
            )
            if key is not None:
                self._soon(key, space, owner["name"], NOTICE_S)
        held = change.kind == "MODIFIED" and HOLD in (meta.get("finalizers") or ())
        if held and "deletionTimestamp" in meta:
            before = (change.before or {}).get("metadata", {})
            if "deletionTimestamp" not in before:
                at = self.clock.now() + self.plan.slow_delete_s
                self.clock.call_at(at, self._let_go(change.key, space, name, meta["uid"]))

    def _let_go(self, key: Key, namespace: str, name: str, uid: str) -> Callable[[], None]:
        def run() -> None:
            found = self.store.find(key, namespace, name)
            if found is None or found["metadata"]["uid"] != uid:
                return

            def release(one: Json) -> None:
                meta = one["metadata"]
                meta["finalizers"] = [f for f in meta["finalizers"] if f != HOLD]
                if not meta["finalizers"]:
                    del meta["finalizers"]
                if key == PODS:
                    meta["deletionGracePeriodSeconds"] = 0

            self.store.edit(key, namespace, name, release)

        return run

    def _soon(self, key: Key, namespace: str, name: str, seconds: float) -> None:
        """A round for one object, unless one is due before."""
        at, address = self.clock.now() + seconds, (key, namespace, name)
        if address in self._due and self._due[address] <= at:
            return
        self._due[address] = at

        def run() -> None:
            if self._due.get(address) != at:
                return
            del self._due[address]
            try:
                self._round(key, namespace, name)
            except Exception as error:
                self.failures.append(error)
                raise

        self.clock.call_at(at, run)

    def _round(self, key: Key, namespace: str, name: str) -> None:
        again: float | None = None
        try:
            if key == CLUSTERS:
                self.clusters.reconcile(namespace, name)
                if self.store.find(CLUSTERS, namespace, name) and self._quota():
                    again = 5.0
            elif key == JOBS:
                again = self.jobs.reconcile(namespace, name)
            else:
                again = self.services.reconcile(namespace, name)
        except ApiError as error:
            # As the operator: what the API refuses is tried again.
            if error.code not in (404, 409):
                raise
            again = 3.0
        if again is not None:
            self._soon(key, namespace, name, again)

    def _quota(self) -> bool:
        return self.plan.start.kind == "quota" and not self.kubelet.mended()
