"""What a job belongs to: when that is deleted, Kubernetes deletes the job."""

from typing import cast

from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api
from rayrun.kube.connection import ACCOUNT, in_cluster
from rayrun.kube.names import KFP_POD, Caller


def owner_of(api: Api, caller: Caller) -> Json | None:
    """The controller of the step's own pod (a Workflow, or a Job), as an owner reference.

    Not the pod: a step that is started again has another one. None outside a pod, where the job is
    made in another namespace (which Kubernetes takes for an owner that is gone), and for a pod
    without a controller.

    Raises:
        ConfigError: the pod is not the one that `$KFP_POD_NAME` names, or may not be looked at.
    """
    if not caller.pod or not in_cluster():
        return None
    if (ACCOUNT / "namespace").read_text(encoding="utf-8").strip() != api.namespace:
        return None
    pod = api.get("pods", caller.pod)
    if pod is None or caller.pod_uid not in ("", pod["metadata"]["uid"]):
        raise ConfigError(
            f"{KFP_POD} must name the pod of this step in {api.namespace}, found {caller.pod}; "
            "unset it outside a step"
        )
    references = cast("list[Json]", pod["metadata"].get("ownerReferences") or [])
    for reference in references:
        if reference.get("controller"):
            return {
                **{name: reference[name] for name in ("apiVersion", "kind", "name", "uid")},
                "controller": False,
                "blockOwnerDeletion": False,
            }
    return None
