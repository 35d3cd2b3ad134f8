"""The Ray cluster of a job or a service: its head and workers as pod templates for KubeRay."""

import importlib.metadata
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from rayrun.config import ConfigError, Json
from rayrun.ray.compute import KubeRayCompute
from rayrun.step import TASK_CONFIG

IMAGE = "INFNET_IMAGE"
"""Environment variable: the image that the packages are in."""
GPU = "nvidia.com/gpu"
SHM = "infnet-shm"
STORE_SHARE = 0.8
"""Of /dev/shm, for Ray's objects; the rest is for exchange between processes."""
LEAST_STORE = 80 << 20
"""Ray starts with no smaller object store (75 MiB)."""
SCALES = {
    **{"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12},
    **{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40},
}

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
    "HOME": "/tmp",  # a numeric user has none
}
DRIVER = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
SERVE = {"serve": 8000}
ANSWERS = {
    "httpGet": {"path": "/-/healthz", "port": "serve"},
    "initialDelaySeconds": 10,
    "periodSeconds": 5,
    "timeoutSeconds": 5,
    "failureThreshold": 1,
}
"""Of a worker that serves: its own proxy answers. KubeRay's own probe needs tools in the image."""


@dataclass(frozen=True)
class Task:
    """What the task of a pipeline was given for the pods that compute, as Kubernetes writes it."""

    resources: Json = field(default_factory=dict[str, Any])
    env: list[Json] = field(default_factory=list[Json])
    node_selector: dict[str, str] = field(default_factory=dict[str, str])
    tolerations: list[Json] = field(default_factory=list[Json])
    affinity: Json = field(default_factory=dict[str, Any])
    volumes: list[Json] = field(default_factory=list[Json])
    mounts: list[Json] = field(default_factory=list[Json])

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Task":
        """From the environment of a step's process.

        Raises:
            ConfigError: it is no JSON object.
        """
        text = environment.get(TASK_CONFIG, "")
        try:
            told: Any = json.loads(text) if text else {}
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise ConfigError(f"{TASK_CONFIG} must hold a JSON object, found {text[:80]!r}")
        given = cast(Json, told)
        return cls(
            resources=given.get("resources") or {},
            env=given.get("env") or [],
            node_selector=given.get("nodeSelector") or {},
            tolerations=given.get("tolerations") or [],
            affinity=given.get("affinity") or {},
            volumes=given.get("volumes") or [],
            mounts=given.get("volumeMounts") or [],
        )


def image_of(compute: KubeRayCompute) -> str:
    """The image of the Ray pods.

    Raises:
        ConfigError: none is named.
    """
    if image := compute.image or os.environ.get(IMAGE, ""):
        return image
    raise ConfigError(
        f"compute.image is required with compute.type kuberay: the image that our packages are in, "
        f"as the nodes pull it; set it, or {IMAGE}"
    )


def cluster_spec(
    compute: KubeRayCompute, labels: Mapping[str, str], task: Task, *, serves: bool = False
) -> Json:
    """`rayClusterSpec`: the head, and as many worker pods as the workers need.

    Args:
        compute: what is asked for.
        labels: of every pod.
        task: of the pipeline, on top of `compute`.
        serves: it answers requests over HTTP.

    Raises:
        ConfigError: no image, or a /dev/shm that Ray does not start with.
    """
    alone = compute.single_pod
    pods = 0 if alone else compute.workers // compute.workers_per_pod
    workers = _Group(compute, labels, task, compute.workers if alone else compute.workers_per_pod)
    head = workers.head(alone, {**DRIVER, **(SERVE if serves else {})})
    spec: Json = {
        "rayVersion": compute.ray_version or importlib.metadata.version("ray"),
        "headGroupSpec": head,
        "workerGroupSpecs": [],
    }
    if pods:
        template = workers.template("ray-worker", workers.resources(), SERVE if serves else {})
        if serves:
            template["spec"]["containers"][0]["readinessProbe"] = dict(ANSWERS)
        spec["workerGroupSpecs"] = [
            {
                "groupName": "workers",
                "replicas": pods,
                "minReplicas": pods,
                "maxReplicas": pods,
                "rayStartParams": workers.start(compute.cpus_per_worker),
                "template": template,
            }
        ]
    if compute.token_secret:
        spec["authOptions"] = {"mode": "token", "secretName": compute.token_secret}
    return spec


def bytes_of(amount: str) -> int:
    """An amount of memory as Kubernetes writes it, in bytes."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", amount)
    assert found is not None, amount
    return int(float(found[1]) * SCALES[found[2]])


def times(amount: str, count: int) -> str:
    """`3Gi` twice is `6Gi`."""
    if count == 1:
        return amount
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", amount)
    assert found is not None, amount
    return f"{float(found[1]) * count:g}{found[2]}"


@dataclass(frozen=True)
class _Group:
    compute: KubeRayCompute
    labels: Mapping[str, str]
    task: Task
    processes: int
    """Workers in one pod."""

    def head(self, alone: bool, ports: Mapping[str, int]) -> Json:
        compute = self.compute
        if alone:
            resources = self.resources()
            memory = bytes_of(compute.head.memory) + bytes_of(resources["limits"]["memory"])
            resources["limits"]["memory"] = resources["requests"]["memory"] = str(memory)
            start = self.start(compute.cpus_per_worker)
        else:
            memory = compute.head.memory
            resources = {
                "requests": {"cpu": compute.head.cpus, "memory": memory},
                "limits": {"memory": memory},
            }
            start = self.start(0)
        return {
            "serviceType": "ClusterIP",
            "rayStartParams": start | {"dashboard-host": "0.0.0.0"},
            "template": self.template("ray-head", resources, ports, computes=alone),
        }

    def start(self, cpus: float) -> dict[str, str]:
        """Of `ray start`: what Ray counts on, whatever the pod's limits are."""
        store = int(bytes_of(self.compute.shm) * STORE_SHARE)
        if store < LEAST_STORE:
            raise ConfigError(
                f"compute.shm must be at least {math.ceil(LEAST_STORE / STORE_SHARE / (1 << 20))}Mi"
                f", or Ray does not start; found {self.compute.shm}"
            )
        gpus = self.compute.gpus_per_worker * self.processes if cpus else 0
        return {
            "num-cpus": str(math.ceil(cpus * self.processes)),
            "num-gpus": str(math.ceil(gpus)),
            "object-store-memory": str(store),
        }

    def resources(self) -> Json:
        """Of a pod with workers: memory's limit is what is requested; CPU has none."""
        compute, given = self.compute, self.task.resources
        limits: Json = {"memory": times(compute.memory_per_worker, self.processes)}
        cpu = compute.cpu_request_per_worker
        if cpu is None:
            cpu = f"{compute.cpus_per_worker * self.processes:g}"
        else:
            milli = int(cpu[:-1]) if cpu.endswith("m") else round(float(cpu) * 1000)
            cpu = f"{milli * self.processes}m"
        requests: Json = {"cpu": cpu}
        limits_given = cast(Json, given.get("limits") or {})
        if compute.gpus_per_worker > 0 and not any("gpu" in name for name in limits_given):
            limits[GPU] = str(math.ceil(compute.gpus_per_worker * self.processes))
        limits |= limits_given
        requests |= cast(Json, given.get("requests") or {})
        memory = limits["memory"] if "memory" in limits_given else requests.get("memory")
        requests["memory"] = limits["memory"] = memory or limits["memory"]
        return {"requests": requests, "limits": limits}

    def template(
        self, name: str, resources: Json, ports: Mapping[str, int], *, computes: bool = True
    ) -> Json:
        """A pod.

        Args:
            name: of its container.
            resources: of the container.
            ports: of the container, by name.
            computes: it goes where the workers go.
        """
        compute, task = self.compute, self.task
        mounts: list[Json] = [{"name": SHM, "mountPath": "/dev/shm"}]
        shm = {"medium": "Memory", "sizeLimit": compute.shm}
        volumes: list[Json] = [{"name": SHM, "emptyDir": shm}]
        for number, mount in enumerate(compute.volumes):
            claim: Json = {"claimName": mount.claim}
            at: Json = {"name": f"infnet-claim-{number}", "mountPath": mount.mount_path}
            if mount.read_only:
                claim["readOnly"] = at["readOnly"] = True
            volumes.append({"name": f"infnet-claim-{number}", "persistentVolumeClaim": claim})
            mounts.append(at)
        given = {str(variable["name"]) for variable in task.env}
        plain = {n: v for n, v in {**ENVIRONMENT, **compute.env}.items() if n not in given}
        container: Json = {
            "name": name,
            "image": image_of(compute),
            "imagePullPolicy": compute.image_pull_policy,
            "env": [*({"name": n, "value": v} for n, v in plain.items()), *task.env],
            "resources": resources,
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [*mounts, *task.mounts],
        }
        if compute.env_from_secrets:
            container["envFrom"] = [{"secretRef": {"name": n}} for n in compute.env_from_secrets]
        if ports:
            container["ports"] = [{"name": n, "containerPort": port} for n, port in ports.items()]
        security: Json = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        if compute.fs_group is not None:
            security["fsGroup"] = compute.fs_group
        spec: Json = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": security,
            "containers": [container],
            "volumes": [*volumes, *task.volumes],
        }
        if compute.service_account:
            spec["serviceAccountName"] = compute.service_account
        if compute.image_pull_secrets:
            spec["imagePullSecrets"] = [{"name": n} for n in compute.image_pull_secrets]
        if compute.priority_class and not compute.queue:
            spec["priorityClassName"] = compute.priority_class
        if computes:
            spec |= self._where()
        return {"metadata": {"labels": dict(self.labels)}, "spec": spec}

    def _where(self) -> Json:
        where: Json = {}
        if nodes := {**self.compute.node_selector, **self.task.node_selector}:
            where["nodeSelector"] = nodes
        ours = (_given(one.to_dict()) for one in self.compute.tolerations)
        if tolerations := [*ours, *self.task.tolerations]:
            where["tolerations"] = tolerations
        if self.task.affinity:
            where["affinity"] = self.task.affinity
        return where


def _given(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value != ""}


def mount_of(place: str, compute: KubeRayCompute, mounts: Iterable[Json]) -> str:
    """Where the volume of the pods is mounted that a local path lies on; empty: on none."""
    paths = [mount.mount_path for mount in compute.volumes if not mount.read_only]
    paths += [str(mount["mountPath"]) for mount in mounts if not mount.get("readOnly")]
    within = (path for path in paths if f"{place}/".startswith(f"{path.rstrip('/')}/"))
    return next(within, "")
