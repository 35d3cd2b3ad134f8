"""Why a Ray cluster does not start, or what ended a part of it: read from pods and events, told
with the key that mends it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api, Lost, Refused, part
from rayrun.kube.names import selector
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.request import say

PULLS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
BROKEN = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
CLUSTER_LABEL = "ray.io/cluster"
MONITOR = "Memory on the node"
MONITORED = re.compile(
    MONITOR + r" \(IP: ([^,]+), ID: [^)]+\) was ([\d.]+)GB used / ([\d.]+)GB limit"
)
"""What Ray's memory monitor says when it ends a worker before the kernel does."""
NOT_MADE = ("FailedToCreateHeadPod", "FailedToCreateWorkerPod", "FailedToCreateRayCluster")


@dataclass(frozen=True)
class Trouble:
    """One thing that keeps a cluster from starting."""

    text: str
    """A sentence with its remedy."""
    waits: bool = False
    """It may well pass by itself: nodes are added, others finish."""


class Watched:
    """Pods and events of one job."""

    def __init__(self, api: Api, compute: KubeRayCompute) -> None:
        """Nothing is asked."""
        self._api, self._compute = api, compute
        self._told = False
        self.killed: dict[str, str] = {}
        """Pods of which a process was ended for its memory, and a sentence about it."""
        self._pod_of: dict[str, str] = {}

    def pods(self, cluster: str) -> list[Json]:
        """Of a Ray cluster; none where they cannot be listed, which is told once."""
        return self._listed("pods", labels=selector({CLUSTER_LABEL: cluster})) if cluster else []

    def events(self, name: str) -> list[Json]:
        """About an object, in their order; none where they cannot be listed."""
        found = self._listed("events", fields=f"involvedObject.name={name}")
        return sorted(found, key=lambda event: str(_time_of(event)))

    def ready(self, pods: Iterable[Json]) -> int:
        """How many of them are."""
        return sum(_is(pod, "Ready") for pod in pods)

    def look(self, pods: Iterable[Json]) -> None:
        """Remember which pods reached their memory's limit: KubeRay replaces them."""
        for pod in pods:
            name = str(pod["metadata"]["name"])
            if address := part(pod, "status").get("podIP"):
                self._pod_of[str(address)] = name
            for status in _containers(pod):
                for state in ("state", "lastState"):
                    ended = part(status, state, "terminated")
                    if ended.get("reason") == "OOMKilled" and name not in self.killed:
                        limit = _limit(pod, str(status.get("name")))
                        head = part(pod, "metadata", "labels").get("ray.io/node-type") == "head"
                        key = "compute.head.memory" if head else "compute.memory_per_worker"
                        text = f"the pod {name} reached its memory limit of {limit} and was killed"
                        self.killed[name] = f"{text}; raise {key}"
                        say(f"warning: {self.killed[name]}")

    def hear(self, line: str) -> None:
        """Remember what a line of the job's log tells of pods."""
        if MONITOR not in line or not (found := MONITORED.search(line)):
            return
        name = self._pod_of.get(found[1], f"with the address {found[1]}")
        text = (
            f"Ray ended a worker of the pod {name}, which used {found[2]} of its {found[3]} GB; "
            "raise compute.memory_per_worker"
        )
        self.killed.setdefault(name, text)

    def trouble(self, job: str, cluster: str, pods: Iterable[Json]) -> Trouble | None:
        """What keeps the cluster of a job from starting; None: nothing that can be seen."""
        found = [one for pod in pods for one in self._of_pod(pod)]
        for name in (cluster, job):
            if name and not any(not one.waits for one in found):
                made = [e for e in self.events(name) if e.get("reason") in NOT_MADE]
                found += [_not_made(str(event.get("message", ""))) for event in made[-1:]]
        return min(found, key=lambda one: one.waits, default=None)

    # -----------------------------------------------------------------------------------------

    def _of_pod(self, pod: Json) -> list[Trouble]:
        name, found = str(pod["metadata"]["name"]), list[Trouble]()
        for status in _containers(pod):
            waiting = part(status, "state", "waiting")
            reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
            if reason in PULLS:
                text = (
                    f"the image {status.get('image') or self._compute.image} cannot be pulled for "
                    f"the pod {name} ({reason}: {message}); correct compute.image, push the image "
                    "where the nodes reach it, or name its credentials in "
                    "compute.image_pull_secrets"
                )
                found.append(Trouble(text))
            elif reason in BROKEN:
                found.append(Trouble(f"the pod {name} cannot start: {_hint(message)}"))
            elif reason == "CrashLoopBackOff":
                last = part(status, "lastState", "terminated")
                text = (
                    f"Ray does not start in the pod {name}: its container ends again and again "
                    f"({last.get('reason') or 'exit code'} {last.get('exitCode', '')})"
                )
                found.append(Trouble(text, waits=True))
        for condition in cast("list[Json]", part(pod, "status").get("conditions") or []):
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                found.append(_unscheduled(name, str(condition.get("message", ""))))
        if not found and part(pod, "status").get("phase") == "Pending":
            mounts = [e for e in self.events(name) if e.get("reason") == "FailedMount"]
            for event in mounts[-1:]:
                said = str(event.get("message", ""))
                found.append(
                    Trouble(f"the pod {name} cannot start: {_hint(said)}", "not found" not in said)
                )
        return found

    def _listed(self, resource: str, **selectors: str) -> list[Json]:
        try:
            return self._api.list(resource, **selectors)
        except Lost:
            raise
        except (ConfigError, Refused) as error:
            if not self._told:
                self._told = True
                say(f"warning: what the pods do cannot be told: {error}")
            return []


def _containers(pod: Json) -> list[Json]:
    status = part(pod, "status")
    kinds = ("initContainerStatuses", "containerStatuses")
    return [one for kind in kinds for one in cast("list[Json]", status.get(kind) or [])]


def _limit(pod: Json, container: str) -> str:
    for one in cast("list[Json]", pod["spec"]["containers"]):
        if one["name"] == container:
            return str(part(one, "resources", "limits").get("memory", "its node"))
    return "its node"


def _is(pod: Json, kind: str) -> bool:
    conditions = cast("list[Json]", part(pod, "status").get("conditions") or [])
    return any(one.get("type") == kind and one.get("status") == "True" for one in conditions)


def _time_of(event: Json) -> object:
    return event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get(
        "creationTimestamp", ""
    )  # fmt: skip


def _unscheduled(name: str, message: str) -> Trouble:
    if claim := re.search(r'persistentvolumeclaim "([^"]+)" not found', message):
        return Trouble(
            f"the pod {name} cannot start: there is no claim {claim[1]}; create it, or correct "
            "compute.volumes"
        )
    return Trouble(f"no node has room for the pod {name} ({message})", waits=True)


def _hint(message: str) -> str:
    if secret := re.search(r'secret "([^"]+)" not found', message):
        return (
            f"there is no Secret {secret[1]}; create it, or correct the name where it is used "
            f"(compute.env_from_secrets, compute.token_secret, volumes of the task) ({message})"
        )
    if "runAsNonRoot" in message or "non-root" in message:
        return f"its image must have a numeric USER that is not 0 ({message})"
    return message


def _not_made(message: str) -> Trouble:
    said = message.partition(", ")[2] or message
    if "exceeded quota" in message:
        return Trouble(
            f"the namespace's ResourceQuota leaves no room: {said}; lower compute.workers, "
            "compute.memory_per_worker or compute.cpu_request_per_worker, or raise the quota"
        )
    if account := re.search(r'serviceaccount "([^"]+)" not found', message):
        return Trouble(
            f"there is no ServiceAccount {account[1]}; create it, or correct "
            "compute.service_account"
        )
    return Trouble(f"Kubernetes refuses the pods: {said}")
