"""Nothing of a run is left in Kubernetes: what its exit handler does, and whoever removes a job."""

import os
from collections.abc import Mapping

from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api, Refused, part
from rayrun.kube.clock import Clock
from rayrun.kube.connection import configured
from rayrun.kube.names import KFP_LABEL, KFP_RUN, OURS, REQUEST_LABEL, RUN_LABEL, label, selector

RAYJOBS = "rayjobs.ray.io"
PODS_S = 2.0
"""Between two looks whether pods are gone."""
REMOVED_S = 90.0
"""How long the exit handler waits for the jobs of a run to be gone."""
NO_ANSWER_S = 60.0
AT_A_DESK_S = 10.0
"""Outside a pod a kubeconfig may name a cluster that is long gone, and somebody waits at Ctrl-C."""


def remove_run(
    run: str,
    *,
    namespace: str = "",
    environment: Mapping[str, str] = os.environ,
    clock: Clock | None = None,
) -> list[str]:
    """End the jobs of a pipeline's run that are still there, whoever started them.

    A terminated run of Kubeflow Pipelines gives its steps no time: its exit handler does this.
    Deployments carry no run's label and stay. Without a Kubernetes API, or where this account may
    not know of jobs and so has started none, nothing is done.

    Args:
        run: name of the run.
        namespace: empty: that of this pod, or of the kubeconfig's context.
        environment: of this process; the run of Kubeflow Pipelines narrows what is removed.
        clock: other than the time of day, for tests.

    Returns:
        Sentences for the report: what was removed, or could not be.
    """
    if not run or not configured():
        return []
    wanted = {RUN_LABEL: label(run), **OURS}
    if kfp_run := environment.get(KFP_RUN):
        wanted[KFP_LABEL] = label(kfp_run)
    try:
        api = Api(namespace=namespace, clock=clock)
        api.patience_s = NO_ANSWER_S if api.connection.of_pod else AT_A_DESK_S
        jobs = api.list(RAYJOBS, labels=selector(wanted))
    except (ConfigError, Refused):
        return []
    return [_removed(api, job) for job in jobs]


def gone(api: Api, job: Json, wait_s: float) -> bool:
    """Wait until a job that was told to end is no more, nor any of its pods; whether that is so."""
    until = api.clock.now() + wait_s
    known: Json | None = job
    while known is not None and known["metadata"]["uid"] == job["metadata"]["uid"]:
        left = until - api.clock.now()
        if left <= 0:
            return False
        known = api.after(RAYJOBS, known, min(left, 10.0))
    request = part(job, "metadata", "labels").get(REQUEST_LABEL, job["metadata"]["name"])
    pods = selector({REQUEST_LABEL: str(request)})
    while api.list("pods", labels=pods):
        if api.clock.now() >= until:
            return False
        api.clock.sleep(PODS_S)
    return True


def _removed(api: Api, job: Json) -> str:
    name = str(job["metadata"]["name"])
    try:
        api.delete(RAYJOBS, name, str(job["metadata"]["uid"]))
        if gone(api, job, REMOVED_S):
            return f"The job `{name}` of this run, which was still there, was removed."
        return f"**The job `{name}` of this run is still being removed.**"
    except (ConfigError, Refused) as error:
        return f"**The job `{name}` of this run is still there and cannot be removed:** {error}"
