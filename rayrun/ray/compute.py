"""Where a run runs, and with how much: `compute:` of every configuration. It never changes a
result.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from rayrun.config import Config


class _Workers(Config):
    workers: int = 1
    """Equal worker processes of a training or analysis run."""
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    @model_validator(mode="after")
    def _counts_are_possible(self) -> "_Workers":
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, found {self.workers}")
        if self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise ValueError(
                "cpus_per_worker must be above 0 and gpus_per_worker at least 0, found "
                f"{self.cpus_per_worker} and {self.gpus_per_worker}"
            )
        return self


class LocalCompute(_Workers):
    """A Ray instance of our own on this machine, started for the run and stopped after it."""

    type: Literal["local"] = "local"
    num_cpus: PositiveInt | None = None
    """CPUs Ray may count on; absent: what the machine has."""
    object_store_bytes: PositiveInt | None = None
    """Shared memory for Ray's objects; absent: Ray's default. More spills to disk."""


class AttachedCompute(_Workers):
    """A Ray cluster that is already there; it is left running."""

    type: Literal["attached"] = "attached"
    address: str = "auto"
    """`HOST:PORT` of the head (its GCS): this process joins the cluster as a driver. `auto`: the
    cluster this process runs in. `http://HOST:8265`, the dashboard: the verb runs there as a job;
    its log is followed here, and Ctrl-C stops it."""
    working_dir: str = "auto"
    """What a job is sent, with an http address only. `auto`: the checkout this command runs from,
    nothing where its packages are installed. Empty: nothing, the cluster has the packages. Else a
    folder, or the URI of a zip file."""

    min_workers: PositiveInt | None = None
    """Training may go on with this many workers while the cluster has no room for more, and takes
    the others up when they are back. Absent: with `workers`, or not at all."""

    @model_validator(mode="after")
    def _sent_with_a_job(self) -> "AttachedCompute":
        if self.working_dir != "auto" and not self.takes_jobs:
            raise ValueError(
                "working_dir is sent with a job, so address must be http://HOST:8265 or https://…, "
                f"found {self.address}; remove working_dir"
            )
        return self

    @property
    def takes_jobs(self) -> bool:
        """Whether the address is a dashboard, which runs verbs as jobs."""
        return self.address.startswith(("http://", "https://"))


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"{what}, found {value!r}")
        return value

    return check


LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
SUBDOMAIN = rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*"
NAMED = "it must be a name of Kubernetes (lower-case letters, digits and -, at most 63 characters)"
REFERS = "it must be the name of an object of Kubernetes (lower-case letters, digits, - and .)"

Named = Annotated[str, AfterValidator(_matching(LABEL, NAMED))]
Reference = Annotated[str, AfterValidator(_matching(SUBDOMAIN, REFERS))]
NamedOrNot = Annotated[str, AfterValidator(_matching(rf"|{LABEL}", f"{NAMED}, or empty"))]
ReferenceOrNot = Annotated[str, AfterValidator(_matching(rf"|{SUBDOMAIN}", f"{REFERS}, or empty"))]
Memory = Annotated[
    str,
    AfterValidator(
        _matching(
            r"[1-9]\d*([.]\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?",
            "it must be an amount of memory as Kubernetes writes it (3Gi, 512Mi)",
        )
    ),
]
Cpus = Annotated[
    str,
    AfterValidator(
        _matching(
            r"[1-9]\d*m|\d+([.]\d{1,3})?",
            "it must be an amount of CPU as Kubernetes writes it (200m, 1, 1.5)",
        )
    ),
]
MountPath = Annotated[
    str, AfterValidator(_matching(r"/[^:]+", "it must be an absolute path without a colon"))
]
Variable = Annotated[
    str,
    AfterValidator(
        _matching(
            r"[A-Za-z_][A-Za-z0-9_]*", "it must be the name of an environment variable of a shell"
        )
    ),
]
Dashboard = Annotated[
    str,
    AfterValidator(
        _matching(r"auto|direct|proxy|https?://.+", "it must be auto, direct, proxy or http://…")
    ),
]


class HeadPod(Config):
    """The pod of a Ray cluster that the driver runs in; no worker does, unless there is one pod."""

    cpus: Cpus = "500m"
    """CPU that is requested; there is no limit."""
    memory: Memory = "3Gi"
    """Requested, and its limit."""


class ClaimMount(Config):
    """A volume claim that is there already, mounted into every pod of the cluster."""

    claim: Reference
    """Name of the PersistentVolumeClaim. Pods on several nodes need one that is ReadWriteMany."""
    mount_path: MountPath
    read_only: bool = False


class Toleration(Config):
    """Lets pods onto nodes with a taint."""

    key: str = ""
    """Empty, with `Exists`: every taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Empty: all of them."""


class KubeRayCompute(_Workers):
    """A Ray cluster of the run's own in Kubernetes: the verb is a RayJob of KubeRay, `deploy` a
    RayService. What runs is followed here; the cluster ends with it.
    """

    type: Literal["kuberay"]
    namespace: NamedOrNot = ""
    """Empty: that of the kubeconfig's context, or of the pod that this command runs in."""
    context: str = ""
    """Of the kubeconfig. Empty: its current one, or, in a pod, its service account."""
    image: str = ""
    """With `python` and our packages. Empty: `$INFNET_IMAGE`."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Reference, ...] = ()
    ray_version: str = ""
    """Of the image. Empty: that of this installation."""
    workers_per_pod: PositiveInt = 1
    """Worker processes that share a pod: the GPUs of a node, say. `workers` is a multiple."""
    memory_per_worker: Memory = "3Gi"
    """Requested, and the limit: a pod with `workers_per_pod` of them gets as many times this."""
    cpu_request_per_worker: Cpus | None = None
    """What Kubernetes keeps free for a worker. Absent: `cpus_per_worker`, on which Ray counts."""
    head: HeadPod = HeadPod()
    single_pod: bool = False
    """The head computes too and there are no other pods; it gets what the workers would."""
    min_workers: PositiveInt | None = None
    """Training goes on with this many workers where a lost pod cannot be replaced (a quota, a full
    cluster), and takes the others up when they are back. It starts with all."""
    shm: Memory = "256Mi"
    """Size of /dev/shm (in memory, part of the pod's): Ray's objects, and exchange between GPUs."""
    service_account: ReferenceOrNot = ""
    """Of the Ray pods, which get no token of it. Empty: the namespace's default."""
    env: dict[Variable, str] = {}
    """Environment of the Ray pods. Nothing secret: it can be read on every object."""
    env_from_secrets: tuple[Reference, ...] = ()
    """Secrets whose keys are environment variables of the Ray pods: credentials of object stores.
    By name; this command needs no right to read them."""
    volumes: tuple[ClaimMount, ...] = ()
    """Storage that all pods share, such as the place of `--out` where that is no s3://…."""
    fs_group: NonNegativeInt | None = None
    """Group that owns the files of the volumes, for an image that is not root."""
    node_selector: dict[str, str] = {}
    """Of the worker pods; the head's too where it is the only pod."""
    tolerations: tuple[Toleration, ...] = ()
    """As `node_selector`."""
    token_secret: ReferenceOrNot = ""
    """Secret with the key `auth_token`: the dashboard answers none but those who send it. This
    command sends `$RAY_AUTH_TOKEN`. Empty: who reaches the dashboard's port may use it."""
    queue: NamedOrNot = ""
    """LocalQueue of Kueue, which says when the job starts. Time in the queue counts to no
    deadline."""
    priority_class: ReferenceOrNot = ""
    """WorkloadPriorityClass of Kueue with a `queue`, else PriorityClass of the pods."""
    backoff_limit: NonNegativeInt = 2
    """How often KubeRay may start the whole job anew on a new cluster, which goes on from its
    checkpoints. Bad input is not tried again."""
    deadline_s: PositiveInt = 7 * 86_400
    """A job that has run so long is ended, whoever still follows it."""
    start_deadline_s: PositiveInt | None = 1800
    """As long may its pods take to be ready. Absent: no limit, and KubeRay before 1.6."""
    ttl_s: NonNegativeInt = 900
    """How long a job that has ended is kept where nobody who followed it removes it."""
    cleanup: Literal["auto", "rules", "ttl"] = "auto"
    """How KubeRay removes it then: by deletion rules, which remove everything, or by
    shutdownAfterJobFinishes, which removes its pods and which Kueue needs. `auto`: rules without a
    `queue`."""
    dashboard: Dashboard = "auto"
    """How the job's log is read: `direct` from the head's service (inside the cluster), `proxy`
    through the Kubernetes API, or a URL that reaches it. `auto`: whichever fits."""
    service: NamedOrNot = ""
    """`deploy` only: name of the RayService. Two applications that name the same one share its
    cluster. Empty: the application's own name."""

    @property
    def takes_jobs(self) -> bool:
        """Verbs run there, not here."""
        return True

    @model_validator(mode="after")
    def _fits_together(self) -> "KubeRayCompute":
        if self.workers % self.workers_per_pod:
            raise ValueError(
                f"workers ({self.workers}) must be a multiple of workers_per_pod "
                f"({self.workers_per_pod})"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers ({self.min_workers}) must be at most workers ({self.workers})"
            )
        if self.queue and self.cleanup == "rules":
            raise ValueError(
                "cleanup: rules and a queue exclude each other: Kueue needs "
                "shutdownAfterJobFinishes, with which KubeRay takes no deletion rules; set cleanup "
                f"to ttl or auto, or remove queue ({self.queue})"
            )
        if self.single_pod and self.min_workers is not None:
            raise ValueError(
                "single_pod has no pods that can be lost one by one; remove min_workers"
            )
        for name in self.env:
            if name in RESERVED:
                raise ValueError(f"env.{name} is set by KubeRay or by us; remove it")
        places = [mount.mount_path.rstrip("/") for mount in self.volumes]
        if twice := {place for place in places if places.count(place) > 1 or place == "/dev/shm"}:
            raise ValueError(
                f"volumes mount {', '.join(sorted(twice))} more than once; give each claim a "
                "mount_path of its own"
            )
        return self


RESERVED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_REDIS_ADDRESS", "FQ_RAY_IP")
"""Environment variables of Ray pods that nobody else sets."""

Compute = Annotated[LocalCompute | AttachedCompute | KubeRayCompute, Field(discriminator="type")]


def fitting(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A raw configuration whose `compute` may have been sent to Kubernetes by its type alone.

    `--set compute.type=kuberay` on a file written for one machine leaves keys there that mean
    nothing any more: they are left out, with a warning.
    """
    compute = raw.get("compute")
    if not isinstance(compute, dict) or cast(Any, compute).get("type") != "kuberay":
        return dict(raw)
    given = cast(dict[str, Any], compute)
    of_others = {*LocalCompute.model_fields, *AttachedCompute.model_fields}
    unused = [name for name in given if name in of_others - {*KubeRayCompute.model_fields}]
    for name in unused:
        warnings.warn(
            f"compute.{name} means nothing with compute.type kuberay and is not used", stacklevel=2
        )
    return {**raw, "compute": {n: v for n, v in given.items() if n not in unused}}
