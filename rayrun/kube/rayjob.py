"""A verb as a RayJob of KubeRay: a Ray cluster of its own, the verb's command as its driver.

HTTPMode: the operator submits the command to the dashboard itself and asks it how the job is, so
that no further pod decides what became of it: a head that is lost is replaced in the same cluster
and the command submitted again under the same id.
"""

import shlex
from pathlib import Path
from typing import cast

from rayrun import storage, yaml12
from rayrun.config import ConfigError, Json
from rayrun.kube.api import RAY
from rayrun.kube.names import (
    ATTEMPT_NOTE,
    CONFIG_NOTE,
    PLACE_NOTE,
    SOURCES_NOTE,
    Caller,
    attempt_name,
    job_labels,
    job_name,
)
from rayrun.kube.pods import Task, cluster_spec, mount_of
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.request import DATA, Request

QUEUE, QUEUE_PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def compute_of(asked: Request) -> KubeRayCompute:
    """Where to, of a request that is for here."""
    return cast(KubeRayCompute, asked.compute)


def rayjob(
    asked: Request,
    *,
    caller: Caller,
    task: Task,
    namespace: str = "",
    owner: Json | None = None,
    attempt: int = 1,
) -> Json:
    """The manifest.

    Args:
        asked: what is to be run.
        caller: on whose behalf.
        task: what the pipeline gave for the pods.
        namespace: where; empty: left to whoever applies it.
        owner: what the job ends with, as an owner reference.
        attempt: 1, 2, …

    Raises:
        ConfigError: no image; an output or inputs that the pods do not reach.
    """
    compute = compute_of(asked)
    check_place(asked, task)
    first = job_name(asked, caller)
    labels = job_labels(asked, caller, first)
    metadata: Json = {
        "name": attempt_name(first, attempt),
        "labels": dict(labels),
        "annotations": {
            CONFIG_NOTE: asked.digest,
            PLACE_NOTE: asked.place,
            SOURCES_NOTE: asked.program,
            ATTEMPT_NOTE: str(attempt),
        },
    }
    if compute.queue:
        metadata["labels"][QUEUE] = compute.queue
        if compute.priority_class:
            metadata["labels"][QUEUE_PRIORITY] = compute.priority_class
    if namespace:
        metadata["namespace"] = namespace
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    spec: Json = {
        "submissionMode": "HTTPMode",
        "entrypoint": f"exec {shlex.join(asked.command)}",
        "runtimeEnvYAML": yaml12.dump({"env_vars": _variables(asked, task)}),
        "metadata": asked.metadata,
        "backoffLimit": compute.backoff_limit,
        "activeDeadlineSeconds": compute.deadline_s,
        **_removal(compute),
        "rayClusterSpec": cluster_spec(compute, labels, task),
    }
    if compute.start_deadline_s is not None:
        spec["preRunningDeadlineSeconds"] = compute.start_deadline_s
    return {"apiVersion": RAY, "kind": "RayJob", "metadata": metadata, "spec": spec}


def check_place(asked: Request, task: Task) -> None:
    """Whether the pods reach the output, as far as can be told from here.

    Raises:
        ConfigError: it is a path that no volume of the pods holds, or that is not here.
    """
    place = storage.local_path(asked.place)
    if place is None:
        return
    flag = "--store" if asked.stored else "--out"
    at = mount_of(str(place), compute_of(asked), task.mounts)
    if not at:
        raise ConfigError(
            f"{flag} must be s3://… or lie on a volume that all pods share, found {asked.place}; "
            "name the claim and where it is mounted under compute.volumes"
        )
    if not Path(at).is_dir():
        raise ConfigError(
            f"{flag} ({asked.place}) lies on a volume of the pods that is not mounted here; mount "
            "it at the same path, or use s3://…"
        )


def _variables(asked: Request, task: Task) -> dict[str, str]:
    variables = asked.variables
    data = storage.local_path(variables.get(DATA, ""))
    if data is not None and not mount_of(str(data), compute_of(asked), task.mounts):
        variables.pop(DATA, None)  # the image's own, or what compute.env says
    if DATA in compute_of(asked).env:
        variables.pop(DATA, None)
    return variables


def _removal(compute: KubeRayCompute) -> Json:
    """What KubeRay does to a job that ended and that nobody removed: either, never both."""
    if compute.queue or compute.cleanup == "ttl":
        return {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": compute.ttl_s}
    ends = [{"jobStatus": "SUCCEEDED"}, {"jobStatus": "FAILED"}, {"jobDeploymentStatus": "Failed"}]
    rules = [
        {"policy": "DeleteSelf", "condition": {**end, "ttlSeconds": compute.ttl_s}} for end in ends
    ]
    return {"deletionStrategy": {"deletionRules": rules}}


def describe(manifest: Json) -> str:
    """As `kubectl apply` takes it."""
    return yaml12.dump(manifest)
