"""KubeRay's CustomResourceDefinitions: 1.7 as they are, 1.6.1 without what is new since.

Read once and kept as JSON under pytest's cache: as YAML the three are 3 MB.
"""

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml

Json = Any

NAMES = ("rayclusters", "rayjobs", "rayservices")
VERSIONS = ("1.6.1", "1.7")

# Compared field by field with config/crd/bases of the Go module
# github.com/ray-project/kuberay/ray-operator@v1.6.1.
NEW_IN_CLUSTER = (
    "autoscalerOptions.args",
    "autoscalerOptions.command",
    "gcsFaultToleranceOptions.backend",
    "gcsFaultToleranceOptions.storage",
    "headGroupSpec.ingressOptions",
    "headGroupSpec.template.spec.schedulingGroup",
    "historyServerOptions",
    "networkPolicy",
    "tlsOptions",
    "workerGroupSpecs[].priority",
    "workerGroupSpecs[].template.spec.schedulingGroup",
)
"""Fields of a cluster's spec, ray.io/v1, that 1.6.1 does not have."""
NEW = {
    "rayclusters": tuple(f"spec.{path}" for path in NEW_IN_CLUSTER),
    "rayjobs": (
        *(f"spec.rayClusterSpec.{path}" for path in NEW_IN_CLUSTER),
        "spec.submitterPodTemplate.spec.schedulingGroup",
        "status.jobStatusCheckFailureStartTime",
    ),
    "rayservices": (
        *(f"spec.rayClusterConfig.{path}" for path in NEW_IN_CLUSTER),
        "spec.suspend",
    ),
}
WITHIN = {
    "rayclusters": "spec",
    "rayjobs": "spec.rayClusterSpec",
    "rayservices": "spec.rayClusterConfig",
}
"""Where a cluster's spec is."""
WORKLOAD = {
    "type": "object",
    "required": ["name", "podGroup"],
    "properties": {
        "name": {"type": "string"},
        "podGroup": {"type": "string"},
        "podGroupReplicaKey": {"type": "string"},
    },
}
"""`workloadRef` of pod templates, that 1.7 replaced by `schedulingGroup`."""
# Besides: in 1.6.1 gcsFaultToleranceOptions requires redisAddress, and v1alpha1 is not deprecated.


def missing() -> str:
    """Why the definitions are not there; empty when they are."""
    if not os.environ.get("INFNET_DATA"):
        return "set INFNET_DATA: the definitions of KubeRay are found beside it, in kuberay-crds"
    if absent := [str(file) for file in _files() if not file.is_file()]:
        return f"the definitions of KubeRay 1.7 are not beside INFNET_DATA: {absent[0]} is missing"
    return ""


def read(version: str, cache: Path) -> list[Json]:
    """The three definitions of a version of KubeRay."""
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {VERSIONS}, found {version!r}")
    raw = [file.read_bytes() for file in _files()]
    digest = hashlib.sha256(b"".join(raw) + Path(__file__).read_bytes()).hexdigest()[:16]
    kept = cache / f"{version}-{digest}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    found = [yaml.load(text, yaml.CSafeLoader) for text in raw]
    for definition in found:
        _without_texts(definition)
    for one in VERSIONS:
        content = found if one == "1.7" else [older(definition) for definition in found]
        file = cache / f"{one}-{digest}.json"
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
        part.replace(file)
    return json.loads(kept.read_text(encoding="utf-8"))


def older(definition: Json) -> Json:
    """A definition of 1.7 as 1.6.1 has it."""
    found = copy.deepcopy(definition)
    plural = found["spec"]["names"]["plural"]
    for version in found["spec"]["versions"]:
        version.pop("deprecated", None)
        version.pop("deprecationWarning", None)
        schema = version["schema"]["openAPIV3Schema"]
        for path in NEW[plural]:
            # v1alpha1 got only `schedulingGroup`.
            if version["name"] == "v1" or path.endswith("schedulingGroup"):
                _drop(schema, path, optional=version["name"] != "v1")
    v1 = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    _at(v1, f"{WITHIN[plural]}.gcsFaultToleranceOptions")["required"] = ["redisAddress"]
    return found


def _files() -> list[Path]:
    folder = Path(os.environ["INFNET_DATA"]).parent / "kuberay-crds"
    return [folder / f"ray.io_{name}.yaml" for name in NAMES]


def _at(schema: Json, path: str) -> Json:
    for part in path.split("."):
        schema = schema["properties"][part.removesuffix("[]")]
        if part.endswith("[]"):
            schema = schema["items"]
    return schema


def _drop(schema: Json, path: str, optional: bool) -> None:
    holder, _, name = path.rpartition(".")
    place = _at(schema, holder)["properties"]
    if optional and name not in place:
        return
    del place[name]
    if name == "schedulingGroup":
        place["workloadRef"] = WORKLOAD


def _without_texts(schema: Json) -> None:
    """Descriptions are a third of it, and nobody validates by them."""
    if isinstance(schema, dict):
        if isinstance(schema.get("description"), str):
            del schema["description"]
        for value in schema.values():
            _without_texts(value)
    elif isinstance(schema, list):
        for value in schema:
            _without_texts(value)
