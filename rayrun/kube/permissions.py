"""What the launcher asks of the Kubernetes API, and what for: the chart's Role for launchers grants
exactly this (`rbac.launcher`), in the namespace of the jobs.
"""

from collections.abc import Mapping

VALUE = "rbac.launcher"
"""Value of the chart that grants `VERBS`."""

VERBS: Mapping[str, Mapping[str, str]] = {
    "rayjobs.ray.io": {
        "create": "start a verb as a job",
        "get": "follow a job that is there, and see that a deleted one is gone",
        "list": "find the jobs of a run or a step, and how a job is before it is watched",
        "watch": "learn of changes of a job without asking every second",
        "delete": "end a job that was interrupted, and remove one whose result was read",
    },
    "rayservices.ray.io": {
        "create": "deploy an application that is not there",
        "get": "see what is deployed, and wait until it runs",
        "patch": "update in place what is deployed",
    },
    "pods": {
        "get": "make the owner of the step's own pod the owner of its job",
        "list": "say why a cluster does not start, and see that the pods of a job are gone",
    },
    "pods/log": {"get": "keep the ends of the logs of a job that failed"},
    "events": {"list": "say why a pod or a job does not start"},
    "services/proxy": {"get": "read a job's log and a deployment's health through the API"},
}
"""Resource, as `kubectl auth can-i` names it → verb → what it is for."""


def missing(verb: str, resource: str, namespace: str) -> str:
    """The sentence for whoever got a 403."""
    why = VERBS.get(resource, {}).get(verb, "do what was asked")
    return (
        f"this account may not {verb} {resource} in the namespace {namespace}, which is needed to "
        f"{why}; grant it: the chart does with {VALUE}.enabled=true (add the account under "
        f"{VALUE}.subjects), any other Role with the verb {verb} on {resource} does too"
    )
