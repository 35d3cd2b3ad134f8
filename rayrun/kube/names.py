"""What our objects are called, and by which labels they are found again."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rayrun.ray.request import Request, digits_of
from rayrun.step import RUN, STEP

NAME_LENGTH = 47
"""KubeRay's limit of a RayJob's or RayService's name: it adds to it for the cluster's services."""
VERB_LENGTH = 20
LABEL_LENGTH = 63

OURS = {"app.kubernetes.io/managed-by": "infnet-ray", "app.kubernetes.io/part-of": "infnet-ray"}
RUN_LABEL, STEP_LABEL, PROGRAM_LABEL = "infnet-ray/run", "infnet-ray/step", "infnet-ray/program"
REQUEST_LABEL = "infnet-ray/request"
"""The name of the first attempt: on all attempts at the same request."""
KFP_LABEL = "infnet-ray/kfp-run"
CONFIG_NOTE, PLACE_NOTE = "infnet-ray/config-digest", "infnet-ray/place"
ATTEMPT_NOTE, SOURCES_NOTE = "infnet-ray/attempt", "infnet-ray/sources"

KFP_RUN, KFP_POD, KFP_POD_UID = "KFP_RUN_ID", "KFP_POD_NAME", "KFP_POD_UID"
"""What Kubeflow Pipelines tells a step of itself."""


@dataclass(frozen=True)
class Caller:
    """On whose behalf something is started: empty parts are not known."""

    run: str = ""
    step: str = ""
    kfp_run: str = ""
    pod: str = ""
    pod_uid: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Caller":
        """Of a step of a pipeline, from the environment of its process."""
        names = (RUN, STEP, KFP_RUN, KFP_POD, KFP_POD_UID)
        return cls(*(environment.get(name, "") for name in names))


def label(text: str) -> str:
    """`text` as the value of a label: what cannot stand there is replaced, and told apart."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", text).strip("-._")
    if safe == text and len(text) <= LABEL_LENGTH:
        return text
    digits = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: LABEL_LENGTH - 9]}-{digits}".lstrip("-._")


def job_name(asked: Request, caller: Caller) -> str:
    """Of the first attempt at a request: the same for the same step of the same run.

    It follows from the verb, its whole configuration but `compute`, its flags and its output, and
    from the run and the step on whose behalf it is made, so an iteration of a loop has its own.
    """
    parts = {
        "asked": asked.asked_for,
        "verb": [asked.prog, asked.verb.name],
        "caller": [caller.run, caller.step, caller.kfp_run],
    }
    return f"ir-{asked.verb.name[:VERB_LENGTH].rstrip('-')}-{digits_of(parts)}"


def attempt_name(first: str, attempt: int) -> str:
    """Of attempt 1, 2, …; at most `NAME_LENGTH` characters up to attempt 10 million."""
    return first if attempt == 1 else f"{first}-{attempt}"


def job_labels(asked: Request, caller: Caller, first: str) -> dict[str, str]:
    """Of a job and its pods."""
    named = {
        RUN_LABEL: caller.run,
        STEP_LABEL: caller.step or asked.verb.name,
        PROGRAM_LABEL: asked.prog,
        KFP_LABEL: caller.kfp_run,
    }
    return {**OURS, REQUEST_LABEL: first, **{n: label(v) for n, v in named.items() if v}}


def selector(labels: Mapping[str, str]) -> str:
    """Objects that carry all of them."""
    return ",".join(f"{name}={value}" for name, value in labels.items())
