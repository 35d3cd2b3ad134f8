"""RayClusters of the simulated operator: pods, head service, status, as KubeRay 1.6.1 makes them."""

import base64
from collections.abc import Callable
from typing import Any

from tests.kube.api_answers import ApiError
from tests.kube.api_routes import Answer, Backend, Request
from tests.kube.api_server import ApiServer
from tests.kube.api_store import quota_exceeded
from tests.kube.fake_dashboard import ENDED, Head, Job
from tests.kube.fake_kubelet import PODS, FakeKubelet, Recorder
from tests.kube.fake_plan import Plan

Json = Any

CLUSTERS = ("ray.io", "rayclusters")
SERVICES = ("", "services")
SECRETS = ("", "secrets")
OPERATOR = {
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/created-by": "kuberay-operator",
}
PORTS = {"client": 10001, "dashboard": 8265, "gcs": 6379, "metrics": 8080, "serve": 8000}
REFUSING_S = 2.0
"""How long a lost head is still an endpoint, at which nothing listens any more."""


def owner(thing: Json) -> list[Json]:
    """A controller's ownerReferences."""
    return [
        {
            "apiVersion": thing["apiVersion"],
            "kind": thing["kind"],
            "name": thing["metadata"]["name"],
            "uid": thing["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def condition(
    conditions: list[Json], kind: str, status: str, reason: str, message: str, now: str
) -> None:
    """Set a condition; its time changes only with its status."""
    new = {"type": kind, "status": status, "reason": reason, "message": message}
    for one in conditions:
        if one["type"] == kind:
            same = one["status"] == status
            one |= new | {"lastTransitionTime": one["lastTransitionTime"] if same else now}
            return
    conditions.append(new | {"lastTransitionTime": now})


def is_true(status: Json, kind: str) -> bool:
    return any(
        one["type"] == kind and one["status"] == "True" for one in status.get("conditions") or ()
    )


class FakeClusters:
    """What the operator does for RayClusters."""

    def __init__(self, server: ApiServer, plan: Plan, kubelet: FakeKubelet) -> None:
        self.server = server
        self.store = server.store
        self.clock = server.clock
        self.plan = plan
        self.kubelet = kubelet
        self.heads: dict[tuple[str, str], Head] = {}
        """By namespace and cluster: of the head pod that is ready now."""
        self.all_heads: list[Head] = []
        self.submissions = 0
        self.recorder = Recorder(server, "raycluster-controller")
        self._pods_of_heads: dict[str, str] = {}
        self._lost: dict[tuple[str, str], float] = {}

    def reconcile(self, namespace: str, name: str) -> None:
        """One round for one cluster."""
        cluster = self.store.find(CLUSTERS, namespace, name)
        if cluster is None or "deletionTimestamp" in cluster["metadata"]:
            self._notice_heads(namespace, name)
            return
        self._service(cluster)
        self._secret(cluster)
        failure = ""
        try:
            self._pods(cluster)
        except ApiError as error:
            failure = str(error)
        self._notice_heads(namespace, name)
        self._status(cluster, failure)

    def head_of(self, namespace: str, cluster: str) -> Head | None:
        return self.heads.get((namespace, cluster))

    def pods_of(self, namespace: str, cluster: str) -> list[Json]:
        return [
            pod
            for pod in self.store.of(PODS, namespace)
            if pod["metadata"].get("labels", {}).get("ray.io/cluster") == cluster
        ]

    def serve_behind(self, namespace: str, service: str) -> Backend:
        """What answers at a head service's dashboard port."""

        def answer(request: Request) -> Answer:
            found = self.store.get(SERVICES, namespace, service)
            cluster = found["spec"]["selector"]["ray.io/cluster"]
            head = self.heads.get((namespace, cluster))
            if head is not None:
                return head.answer(request)
            lost = self._lost.get((namespace, cluster))
            if lost is not None and self.clock.now() < lost + REFUSING_S:
                text = "dial tcp 10.244.0.9:8265: connect: connection refused"
                raise ApiError(503, f"error trying to reach service: {text}")
            raise ApiError(503, f'no endpoints available for service "{service}"')

        return answer

    def head_service(self, thing: Json, name: str, cluster: str) -> Json:
        """A head service that `thing` owns."""
        namespace = thing["metadata"]["namespace"]
        labels = {
            **OPERATOR,
            "ray.io/cluster": cluster,
            "ray.io/identifier": f"{cluster}-head"[-63:],
            "ray.io/node-type": "head",
        }
        self.server.routes.backends[namespace, name, "8265"] = self.serve_behind(namespace, name)
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": labels,
                "ownerReferences": owner(thing),
            },
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": dict(labels),
                "ports": [
                    {"name": port, "port": number, "appProtocol": "tcp"}
                    for port, number in PORTS.items()
                ],
            },
        }

    # ------------------------------------------------------------------------------------

    def _service(self, cluster: Json) -> None:
        meta = cluster["metadata"]
        name = f"{meta['name']}-head-svc"
        if self.store.find(SERVICES, meta["namespace"], name) is None:
            self.server.create(self.head_service(cluster, name, meta["name"]))

    def _secret(self, cluster: Json) -> None:
        options, meta = cluster["spec"].get("authOptions"), cluster["metadata"]
        if not options or options.get("mode", "token") != "token" or options.get("secretName"):
            return
        if self.store.find(SECRETS, meta["namespace"], meta["name"]) is None:
            self.server.create(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {
                        "name": meta["name"],
                        "namespace": meta["namespace"],
                        "ownerReferences": owner(cluster),
                    },
                    "stringData": {"auth_token": f"token-{meta['uid']}"},
                }
            )

    def _pods(self, cluster: Json) -> None:
        meta, spec = cluster["metadata"], cluster["spec"]
        pods = self.pods_of(meta["namespace"], meta["name"])
        by_group: dict[str, list[Json]] = {}
        for pod in pods:
            if pod["status"].get("phase") in ("Failed", "Succeeded"):
                self.store.delete(PODS, meta["namespace"], pod["metadata"]["name"])
                return
            by_group.setdefault(pod["metadata"]["labels"]["ray.io/group"], []).append(pod)
        if not by_group.get("headgroup"):
            self._create_pod(cluster, "head", "headgroup", spec["headGroupSpec"], 0)
        for group in spec.get("workerGroupSpecs") or ():
            there = by_group.get(group["groupName"], [])
            wanted = 0 if group.get("suspend") else max(group["replicas"], group["minReplicas"])
            for pod in there[wanted:]:
                self.store.delete(PODS, meta["namespace"], pod["metadata"]["name"])
            for i in range(len(there), wanted):
                self._create_pod(cluster, "worker", group["groupName"], group, i)

    def _create_pod(self, cluster: Json, role: str, group: str, spec: Json, index: int) -> None:
        meta, template = cluster["metadata"], spec["template"]
        name = f"{meta['name'][:50]}-head" if role == "head" else ""
        prefix = f"{meta['name'][:50]}-{group[:30]}-worker-"
        start, reason = self.plan.start, f"FailedToCreate{role.title()}Pod"
        if start.kind == "quota" and start.role == role and not self.kubelet.mended():
            if self.kubelet.first_pod is None:
                self.kubelet.first_pod = self.clock.now()
            error = quota_exceeded(
                "pods",
                name or f"{prefix}{index}",
                "team, requested: requests.memory=3Gi, used: requests.memory=2Gi, "
                "limited: requests.memory=4Gi",
            )
            text = f"Failed to create {role} Pod {meta['namespace']}/{name}, {error}"
            self.recorder.say(cluster, "Warning", reason, text)
            raise error
        labels = {
            **OPERATOR,
            **template.get("metadata", {}).get("labels", {}),
            "ray.io/cluster": meta["name"],
            "ray.io/group": group,
            "ray.io/identifier": f"{meta['name']}-{role}"[-63:],
            "ray.io/is-ray-node": "yes",
            "ray.io/node-type": role,
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **({"name": name} if name else {"generateName": prefix}),
                "namespace": meta["namespace"],
                "labels": labels,
                "annotations": template.get("metadata", {}).get("annotations", {}),
                "ownerReferences": owner(cluster),
            },
            "spec": template["spec"],
        }
        if self.plan.slow_delete_s:
            pod["metadata"]["finalizers"] = ["slow.example.com/hold"]
        made = self.server.create(pod)
        said = f"Created {role} Pod {meta['namespace']}/{made['metadata']['name']}"
        self.recorder.say(cluster, "Normal", f"Created{role.title()}Pod", said)

    def _notice_heads(self, namespace: str, name: str) -> None:
        """A head answers from when its pod is ready to when the pod is gone or going."""
        ready = [
            pod
            for pod in self.pods_of(namespace, name)
            if pod["metadata"]["labels"]["ray.io/node-type"] == "head"
            and "deletionTimestamp" not in pod["metadata"]
            and is_true(pod["status"], "Ready")
        ]
        uid = ready[0]["metadata"]["uid"] if ready else ""
        before = self.heads.get((namespace, name))
        if before is not None and self._pods_of_heads.get(before.name) != uid:
            before.gone, before.gone_at = True, self.clock.now()
            self._lost[namespace, name] = self.clock.now()
            del self.heads[namespace, name]
            before = None
        if before is None and ready:
            head = Head(
                f"{name}:{len(self.all_heads)}",
                self.clock,
                self.plan,
                self._next_submission,
                self._token(namespace, name),
                self._submitted(namespace, name),
            )
            self.heads[namespace, name] = head
            self.all_heads.append(head)
            self._pods_of_heads[head.name] = uid

    def _next_submission(self) -> int:
        self.submissions += 1
        return self.submissions - 1

    def _submitted(self, namespace: str, cluster: str) -> Callable[[Head, Job], None]:
        """What the plan has for a job, at its times."""

        def pod(role: str) -> str:
            found = [
                one["metadata"]["name"]
                for one in self.pods_of(namespace, cluster)
                if one["metadata"]["labels"]["ray.io/node-type"] == role
            ]
            return found[0] if found else ""

        def told(head: Head, job: Job) -> None:
            fate = job.fate

            def end() -> None:
                if not head.gone and job.stopped is None and self.plan.on_end is not None:
                    self.plan.on_end(job.request, fate, job.status(self.clock.now()))

            def lose() -> None:
                now = self.clock.now()
                if not head.gone and job.status(now) not in ENDED and (name := pod("head")):
                    self.kubelet.kill(name, namespace)

            if fate.outcome:
                self.clock.call_at(job.begun + fate.lasts_s, end)
            if fate.head_lost_s is not None:
                self.clock.call_at(job.begun + fate.head_lost_s, lose)
            if fate.worker_oom_s is not None:
                at = job.begun + fate.worker_oom_s
                self.clock.call_at(at, lambda: self.kubelet.out_of_memory(pod("worker"), namespace))

        return told

    def _token(self, namespace: str, name: str) -> str:
        cluster = self.store.get(CLUSTERS, namespace, name)
        options = cluster["spec"].get("authOptions")
        if not options or options.get("mode", "token") != "token":
            return ""
        secret = self.store.find(SECRETS, namespace, options.get("secretName") or name)
        data = (secret or {}).get("data") or {}
        return base64.b64decode(data.get("auth_token", "")).decode()

    def _status(self, cluster: Json, failure: str) -> None:
        meta, spec, now = cluster["metadata"], cluster["spec"], self.store.now()
        status = dict(cluster.get("status") or {})
        pods = self.pods_of(meta["namespace"], meta["name"])
        heads = [p for p in pods if p["metadata"]["labels"]["ray.io/node-type"] == "head"]
        workers = [p for p in pods if p not in heads]
        groups = [g for g in spec.get("workerGroupSpecs") or () if not g.get("suspend")]
        wanted = sum(max(g["replicas"], g["minReplicas"]) for g in groups)
        status |= {
            "observedGeneration": meta["generation"],
            "desiredWorkerReplicas": wanted,
            "minWorkerReplicas": sum(g["minReplicas"] for g in groups),
            "maxWorkerReplicas": min(sum(g["maxReplicas"] for g in groups), 2**31 - 1),
            "availableWorkerReplicas": sum(p["status"]["phase"] == "Running" for p in workers),
            "readyWorkerReplicas": sum(is_true(p["status"], "Ready") for p in workers),
            "desiredCPU": "0",
            "desiredGPU": "0",
            "desiredMemory": "0",
            "desiredTPU": "0",
            "endpoints": {name: str(number) for name, number in PORTS.items()},
        }
        conditions = [dict(one) for one in status.get("conditions") or ()]
        if failure:
            role = "Head" if "-head" in failure else "Worker"
            reason = f"FailedCreate{role}Pod"
            condition(conditions, "ReplicaFailure", "True", reason, failure, now)
        else:
            conditions = [one for one in conditions if one["type"] != "ReplicaFailure"]
        running = bool(pods) and all(is_true(p["status"], "Ready") for p in pods)
        if running and not failure and len(pods) == wanted + 1:
            status["state"] = "ready"
        if not heads:
            condition(
                conditions, "HeadPodReady", "False", "HeadPodNotFound", "Head Pod not found", now
            )
        elif is_true(heads[0]["status"], "Ready"):
            condition(conditions, "HeadPodReady", "True", "HeadPodRunningAndReady", "", now)
            service = f"{meta['name']}-head-svc"
            ip = heads[0]["status"]["podIP"]
            status["head"] = {
                "podIP": ip,
                "podName": heads[0]["metadata"]["name"],
                "serviceIP": ip,
                "serviceName": service,
            }
        else:
            reason, message = _not_ready(heads[0])
            condition(conditions, "HeadPodReady", "False", reason, message, now)
        if not any(
            c["type"] == "RayClusterProvisioned" and c["status"] == "True" for c in conditions
        ):
            done = (
                "True",
                "AllPodRunningAndReadyFirstTime",
                "All Ray Pods are ready for the first time",
            )
            not_yet = (
                "False",
                "RayClusterPodsProvisioning",
                "RayCluster Pods are being provisioned for first time",
            )
            condition(conditions, "RayClusterProvisioned", *(done if running else not_yet), now)
        for kind in ("RayClusterSuspended", "RayClusterSuspending"):
            condition(conditions, kind, "False", kind, "", now)
        status["conditions"] = conditions
        if status != cluster.get("status"):
            status["lastUpdateTime"] = now
            self.server.set_status("ray.io/v1/rayclusters", meta["namespace"], meta["name"], status)


def _not_ready(pod: Json) -> tuple[str, str]:
    for one in pod["status"].get("containerStatuses") or ():
        if waiting := one["state"].get("waiting"):
            return waiting["reason"], f"{one['name']}: {waiting['message']}"
    for one in pod["status"].get("conditions") or ():
        if one["status"] == "False" and one.get("reason"):
            return one["reason"], one.get("message", "")
    return "Unknown", ""
