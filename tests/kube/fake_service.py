"""RayServices of the simulated operator: rayservice_controller.go of KubeRay 1.6.1.

An update of serveConfigV2 alone goes in place; another cluster spec starts a second cluster beside the
first, to which the services switch when all its applications run. No incremental upgrades.
"""

import json
from typing import Any

import yaml

from tests.kube.api_store import copied
from tests.kube.fake_cluster import CLUSTERS, SERVICES, FakeClusters, condition, is_true, owner
from tests.kube.fake_kubelet import Recorder

Json = Any

SERVICES_OF_RAY = ("ray.io", "rayservices")
POLL_S = 2.0
DELETE_S = 60.0
"""How long a cluster that nobody uses any more stays."""
HASH = "ray.io/hash-without-replicas-and-workers-to-delete"


class FakeServices:
    """What the operator does for RayServices."""

    def __init__(self, clusters: FakeClusters) -> None:
        self.clusters = clusters
        self.server = clusters.server
        self.store = clusters.store
        self.clock = clusters.clock
        self.recorder = Recorder(self.server, "rayservice-controller")
        self._told: dict[str, str] = {}
        """Which serveConfigV2 each cluster was given."""
        self._dangling: dict[str, float] = {}

    def reconcile(self, namespace: str, name: str) -> float | None:
        """One round; says after how many seconds the next one is wanted."""
        service = self.store.find(SERVICES_OF_RAY, namespace, name)
        if service is None or "deletionTimestamp" in service["metadata"]:
            return None
        service = copied(service)
        before = copied(service.get("status") or {})
        status = service.setdefault("status", {})
        active, pending = status.setdefault("activeServiceStatus", {}), status.setdefault(
            "pendingServiceStatus", {}
        )  # fmt: skip
        self._clean(service)
        now_active = self._find(service, active)
        now_pending = self._find(service, pending)
        if pending.get("rayClusterName") and now_pending is None:
            now_pending = self._create(service, pending["rayClusterName"])
        wanted = self._digest(service)
        target, ready = None, False
        if now_pending is not None:
            ready, pending["applicationStatuses"] = self._serve(service, now_pending)
            target = now_pending if ready else None
        elif now_active is not None and self._digest_of(now_active) == wanted:
            ready, active["applicationStatuses"] = self._serve(service, now_active)
            target = now_active if ready else None
        if target is not None:
            self._point(service, target)
            if now_pending is not None and target is now_pending:
                status["activeServiceStatus"] = active = pending
                status["pendingServiceStatus"] = pending = {}
                now_active, now_pending = now_pending, None
        current = now_pending or now_active
        outdated = current is None or (now_pending is None and self._digest_of(current) != wanted)
        if outdated and not pending.get("rayClusterName"):
            pending["rayClusterName"] = f"{name}-{self.store.uid()[:5]}"
        for part, cluster in ((active, now_active), (pending, now_pending)):
            if cluster is not None:
                part["rayClusterStatus"] = copied(cluster.get("status") or {})
        self._conditions(service, now_active)
        changed = {k: v for k, v in status.items() if k != "lastUpdateTime"}
        if changed != {k: v for k, v in before.items() if k != "lastUpdateTime"}:
            status["lastUpdateTime"] = self.store.now()
            self.server.set_status("ray.io/v1/rayservices", namespace, name, status)
        return POLL_S

    # ------------------------------------------------------------------------------------

    def _digest(self, service: Json) -> str:
        """Of what needs another cluster when it changes: not of the numbers of workers."""
        spec = copied(service["spec"]["rayClusterConfig"])
        for group in spec.get("workerGroupSpecs") or ():
            group.pop("replicas", None)
            group.pop("scaleStrategy", None)
        return json.dumps(spec, sort_keys=True)

    def _digest_of(self, cluster: Json) -> str:
        return cluster["metadata"]["annotations"][HASH]

    def _find(self, service: Json, part: Json) -> Json:
        if not (name := part.get("rayClusterName")):
            return None
        return self.store.find(CLUSTERS, service["metadata"]["namespace"], name)

    def _create(self, service: Json, name: str) -> Json:
        meta = service["metadata"]
        return self.server.create(
            {
                "apiVersion": "ray.io/v1",
                "kind": "RayCluster",
                "metadata": {
                    "name": name,
                    "namespace": meta["namespace"],
                    "labels": {
                        **(meta.get("labels") or {}),
                        "ray.io/originated-from-cr-name": meta["name"],
                        "ray.io/originated-from-crd": "RayService",
                    },
                    "annotations": {
                        **(meta.get("annotations") or {}),
                        HASH: self._digest(service),
                    },
                    "ownerReferences": owner(service),
                },
                "spec": copied(service["spec"]["rayClusterConfig"]),
            }
        )

    def _serve(self, service: Json, cluster: Json) -> tuple[bool, Json]:
        meta, wanted = cluster["metadata"], service["spec"].get("serveConfigV2", "")
        head = self.clusters.head_of(meta["namespace"], meta["name"])
        if head is None:
            return False, {}
        now = self.clock.now()
        states = {
            name: {
                "status": app["status"],
                "message": app["message"],
                "serveDeploymentStatuses": copied(app["deployments"]),
            }
            for name, app in head.applications(now).items()
        }
        if self._told.get(head.name) != wanted:
            self._told[head.name] = wanted
            head.serve, head.serve_since = yaml.safe_load(wanted) or {}, now
            text = (
                f"Updated serve applications to the RayCluster {meta['namespace']}/{meta['name']}"
            )
            self.recorder.say(service, "Normal", "UpdatedServeApplications", text)
        ready = bool(states) and all(app["status"] == "RUNNING" for app in states.values())
        return ready, states

    def _point(self, service: Json, cluster: Json) -> None:
        """The head service and the serve service, at the cluster that serves."""
        meta, wanted = service["metadata"], cluster["metadata"]["name"]
        for suffix in ("head-svc", "serve-svc"):
            name = f"{meta['name']}-{suffix}"
            made = self.clusters.head_service(service, name, wanted)
            if suffix == "serve-svc":
                del self.server.routes.backends[meta["namespace"], name, "8265"]
                made["spec"]["ports"] = [{"name": "serve", "port": 8000}]
                del made["spec"]["clusterIP"]
            found = self.store.find(SERVICES, meta["namespace"], name)
            if found is None:
                self.server.create(made)
            elif found["spec"]["selector"]["ray.io/cluster"] != wanted:
                selector = made["spec"]["selector"]
                self.store.edit(
                    SERVICES,
                    meta["namespace"],
                    name,
                    lambda one, selector=selector: one["spec"].update(selector=selector),
                )

    def _conditions(self, service: Json, active: Json) -> None:
        status, now = service["status"], self.store.now()
        status["observedGeneration"] = service["metadata"]["generation"]
        conditions = [dict(one) for one in status.get("conditions") or ()]
        begins = "RayService is initializing"
        if not conditions:
            condition(conditions, "Ready", "False", "Initializing", begins, now)
            condition(conditions, "UpgradeInProgress", "False", "Initializing", begins, now)
        head = None
        if active is not None:
            meta = active["metadata"]
            head = self.clusters.head_of(meta["namespace"], meta["name"])
        status["numServeEndpoints"] = int(head is not None and head.serve is not None)
        if status["numServeEndpoints"]:
            text = "Number of serve endpoints is greater than 0"
            condition(conditions, "Ready", "True", "NonZeroServeEndpoints", text, now)
        elif is_true({"conditions": conditions}, "Ready"):
            text = "Number of serve endpoints dropped to 0"
            condition(conditions, "Ready", "False", "ZeroServeEndpoints", text, now)
        names = [
            status[part].get("rayClusterName")
            for part in ("activeServiceStatus", "pendingServiceStatus")
        ]
        kind = "UpgradeInProgress"
        if all(names):
            text = "Both active and pending Ray clusters exist"
            condition(conditions, kind, "True", "BothActivePendingClustersExist", text, now)
        elif names[0]:
            text = "Active Ray cluster exists and no pending Ray cluster"
            condition(conditions, kind, "False", "NoPendingCluster", text, now)
        for one in conditions:
            one["observedGeneration"] = status["observedGeneration"]
        status["conditions"] = conditions
        running = is_true(status, "Ready")
        status["serviceStatus"] = "Running" if running else ""

    def _clean(self, service: Json) -> None:
        meta, status, now = service["metadata"], service["status"], self.clock.now()
        used = {
            status[part].get("rayClusterName")
            for part in ("activeServiceStatus", "pendingServiceStatus")
        }
        for cluster in self.store.of(CLUSTERS, meta["namespace"]):
            there = cluster["metadata"]
            mine = any(o["uid"] == meta["uid"] for o in there.get("ownerReferences") or ())
            if not mine or there["name"] in used or "deletionTimestamp" in there:
                continue
            if self._dangling.setdefault(there["name"], now + DELETE_S) <= now:
                self.store.delete(CLUSTERS, meta["namespace"], there["name"])
