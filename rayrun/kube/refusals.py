"""What the Kubernetes API says against a manifest of ours, told with the key that mends it."""

import re

from rayrun.config import Json
from rayrun.kube.api import Refused
from rayrun.ray.compute import KubeRayCompute

FIELDS = {
    "preRunningDeadlineSeconds": "compute.start_deadline_s=null",
    "deletionStrategy": "compute.cleanup=ttl",
    "authOptions": "compute.token_secret=''",
}
"""Fields that an older KubeRay does not know, and how to do without."""


def explained(refused: Refused, manifest: Json, compute: KubeRayCompute) -> str:
    """One readable error.

    Args:
        refused: the answer.
        manifest: what was to be made.
        compute: what asked for it.
    """
    name, message = manifest["metadata"]["name"], refused.message
    kind = str(manifest["kind"])
    if unknown := re.findall(r'unknown field "([^"]+)"', message):
        without = [how for field, how in FIELDS.items() if any(field in one for one in unknown)]
        rest = f", or do without: --set {' --set '.join(without)}" if without else ""
        return (
            f"the KubeRay of this cluster is older than fields that are set ({', '.join(unknown)}"
            f"): upgrade its operator and its CRDs to 1.6 or newer{rest}"
        )
    if "exceeded quota" in message:
        return (
            f"the namespace's ResourceQuota does not let the {kind} {name} be made ({message}); "
            "raise it, or remove jobs that have ended: kubectl get rayjobs"
        )
    if refused.code == 422:
        return (
            f"Kubernetes does not take the {kind} {name}: {message}; correct what compute says "
            "there"
        )
    if "admission webhook" in message or "denied the request" in message:
        return f"an admission webhook of the cluster refuses the {kind} {name}: {message}"
    hint = f"; compute.queue is {compute.queue}" if compute.queue else ""
    return f"Kubernetes refuses the {kind} {name} ({refused.code}): {message}{hint}"
