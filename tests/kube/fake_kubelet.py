"""Pods of the simulated cluster: scheduled, started, failing to start, killed for memory."""

from typing import Any

from tests.kube.api_server import ApiServer
from tests.kube.api_store import Change
from tests.kube.fake_plan import Plan

Json = Any

PODS = ("", "pods")
NODE = "node-1"
SCHEDULE_S = 0.2


class Recorder:
    """Writes events about objects, as a controller's recorder does."""

    def __init__(self, server: ApiServer, component: str) -> None:
        self.server = server
        self.component = component

    def say(self, about: Json, kind: str, reason: str, message: str) -> None:
        """An event; the same one again only counts."""
        meta, store = about["metadata"], self.server.store
        space, now = meta.get("namespace", "default"), store.now()
        for event in store.of(("", "events"), space):
            if (event["involvedObject"].get("uid"), event["reason"], event["message"]) == (
                meta["uid"],
                reason,
                message,
            ):
                store.edit(
                    ("", "events"),
                    space,
                    event["metadata"]["name"],
                    lambda e: e.update(count=e["count"] + 1, lastTimestamp=now),
                )
                return
        self.server.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{meta['name']}.{store.version:x}", "namespace": space},
                "involvedObject": {
                    "apiVersion": about["apiVersion"],
                    "kind": about["kind"],
                    "name": meta["name"],
                    "namespace": space,
                    "uid": meta["uid"],
                },
                "type": kind,
                "reason": reason,
                "message": message,
                "source": {"component": self.component},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
        )


class FakeKubelet:
    """Scheduler and kubelet of one node: every pod runs, unless the plan says otherwise."""

    def __init__(self, server: ApiServer, plan: Plan) -> None:
        self.server = server
        self.plan = plan
        self.clock = server.clock
        self.first_pod: float | None = None
        self._said = Recorder(server, "kubelet")
        self._scheduler = Recorder(server, "default-scheduler")
        server.store.listeners.append(self._heard)

    def kill(self, name: str, namespace: str = "default") -> None:
        """Delete a pod by force."""
        self.server.store.delete(PODS, namespace, name, grace=0)

    def out_of_memory(self, name: str, namespace: str = "default") -> None:
        """The kernel kills a pod's first container; it is started again, as restartPolicy says."""
        pod = self.server.store.find(PODS, namespace, name)
        if pod is None or not pod["status"].get("containerStatuses"):
            return
        now = self.server.store.now()
        terminated = {"exitCode": 137, "reason": "OOMKilled", "startedAt": now, "finishedAt": now}
        status = self.running(pod)
        state = status["containerStatuses"][0]
        before = pod["status"]["containerStatuses"][0]["restartCount"]
        if pod["spec"]["restartPolicy"] == "Never":
            status["phase"] = "Failed"
            state |= {"state": {"terminated": terminated}, "ready": False}
        else:
            state |= {"lastState": {"terminated": terminated}, "restartCount": before + 1}
            uid = pod["metadata"]["uid"]
            self.server.routes.logs[namespace, name, state["name"] + "/previous"] = (
                f"{uid}: the first container's last words\n"
            )
        self.server.set_status("v1/pods", namespace, name, status)

    def running(self, pod: Json) -> Json:
        """The status of a pod that runs and is ready."""
        now = self.server.store.now()
        number = int(pod["metadata"]["uid"][:4], 16)
        return {
            "phase": "Running",
            "hostIP": "192.168.0.1",
            "podIP": f"10.244.{number >> 8}.{number & 255}",
            "startTime": now,
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": now}
                for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container.get("image", ""),
                    "imageID": "",
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": now}},
                    "lastState": {},
                }
                for container in pod["spec"]["containers"]
            ],
        }

    def mended(self) -> bool:
        """Whether what kept pods from running is over."""
        begun = self.clock.now() if self.first_pod is None else self.first_pod
        return self.clock.now() >= begun + self.plan.start.until_s

    def _heard(self, change: Change) -> None:
        if change.key != PODS or change.kind != "ADDED":
            return
        if self.first_pod is None:
            self.first_pod = self.clock.now()
        meta = change.thing["metadata"]
        self._later(SCHEDULE_S, self._schedule, meta)

    def _later(self, seconds: float, step: Any, meta: Json) -> None:
        def run() -> None:
            pod = self.server.store.find(PODS, meta["namespace"], meta["name"])
            if pod is None or pod["metadata"]["uid"] != meta["uid"]:
                return
            if "deletionTimestamp" not in pod["metadata"]:
                step(pod)

        self.clock.call_at(self.clock.now() + seconds, run)

    def _hit(self, pod: Json, kind: str) -> bool:
        role = pod["metadata"].get("labels", {}).get("ray.io/node-type", "head")
        start = self.plan.start
        return start.kind == kind and start.role == role and not self.mended()

    def _schedule(self, pod: Json) -> None:
        meta = pod["metadata"]
        if self._hit(pod, "unschedulable"):
            text = "0/1 nodes are available: 1 Insufficient cpu. preemption: not helpful."
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": text,
                "lastTransitionTime": self.server.store.now(),
            }
            if not pod["status"].get("conditions"):
                status = {"phase": "Pending", "conditions": [condition]}
                self.server.set_status("v1/pods", meta["namespace"], meta["name"], status)
            self._scheduler.say(pod, "Warning", "FailedScheduling", text)
            self._later(15.0, self._schedule, meta)
            return

        def place(one: Json) -> None:
            one["spec"]["nodeName"] = NODE
            one["status"] = {"phase": "Pending"}

        self.server.store.edit(PODS, meta["namespace"], meta["name"], place)
        self._later(self.plan.pod_starts_s, self._start, meta)

    def _start(self, pod: Json) -> None:
        meta = pod["metadata"]
        if self._hit(pod, "image"):
            container = pod["spec"]["containers"][0]
            image = container.get("image", "")
            seen = pod["status"].get("containerStatuses")
            reason = "ImagePullBackOff" if seen else "ErrImagePull"
            text = (
                f'Back-off pulling image "{image}": ErrImagePull: failed to pull and unpack image '
                f'"{image}": not found'
            )
            status = self.running(pod)
            status["phase"] = "Pending"
            for condition in status["conditions"][2:]:
                condition |= {"status": "False", "reason": "ContainersNotReady"}
            waiting = {"waiting": {"reason": reason, "message": text}}
            for one in status["containerStatuses"]:
                one |= {"state": waiting, "ready": False, "started": False}
            self.server.set_status("v1/pods", meta["namespace"], meta["name"], status)
            self._said.say(pod, "Warning", "Failed", f"Error: {reason}")
            self._later(10.0, self._start, meta)
            return
        self.server.set_status("v1/pods", meta["namespace"], meta["name"], self.running(pod))
        if pod["spec"].get("restartPolicy") == "Never" and not meta.get("labels", {}).get(
            "ray.io/cluster"
        ):
            self._later(1.0, self._end, meta)

    def _end(self, pod: Json) -> None:
        """A pod that is no Ray node, such as a test of Helm, does its work and succeeds."""
        meta, now = pod["metadata"], self.server.store.now()
        status = self.running(pod)
        status["phase"] = "Succeeded"
        done = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
        for one in status["containerStatuses"]:
            one |= {"state": {"terminated": done}, "ready": False, "started": False}
        self.server.set_status("v1/pods", meta["namespace"], meta["name"], status)
