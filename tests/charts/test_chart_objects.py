"""The rendered objects are what Kubernetes 1.32 to 1.37 and KubeRay 1.6 and 1.7 take."""

import copy
import functools

import kubernetes_validate
import pytest
import rendering
from kubernetes_validate import utils
from rendering import BUNDLES, EVERYTHING, clusters, merged, pod_templates, preset, render

from tests.kube.api_schema import add_defaults, check, prune

VERSIONS = ("1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
SETS = {
    "laptop": preset("laptop"),
    "production": preset("production"),
    "everything": merged(BUNDLES, EVERYTHING),
}
OTHERS = {"RayService", "RayCluster", "PodMonitor", "ServiceMonitor", "PrometheusRule", "HTTPRoute"}
"""Kinds that are not Kubernetes' own."""
EMBEDDED = {"kuberay": {"version": "1.7"}, "gcsFaultTolerance": {"backend": "embedded"}}


@pytest.fixture(scope="module", autouse=True)
def _read_once():
    """The library reads its definitions anew for each object: 1 MB for each version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_own_objects_are_valid(version):
    seen = set()
    for name, values in SETS.items():
        for thing in render(values):
            if thing["kind"] in OTHERS or (name, thing["kind"]) in seen:
                continue
            seen.add((name, thing["kind"]))
            kubernetes_validate.validate(thing, version, strict=True)
    assert len({kind for _, kind in seen}) == 8


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_pods_of_ray_are_valid_pods(version):
    """The definitions of KubeRay leave out much that Kubernetes says of a pod."""
    for values in SETS.values():
        for (service, group), template in pod_templates(render(values)).items():
            pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
            pod["metadata"]["name"] = f"{service}-{group}"
            kubernetes_validate.validate(pod, version, strict=True)


def problems(definitions, thing):
    """What the API server would say, defaults filled in first."""
    (crd,) = [d for d in definitions if d["spec"]["names"]["kind"] == thing["kind"]]
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    thing = copy.deepcopy(thing)
    add_defaults(schema, thing)
    return [*prune(schema, copy.deepcopy(thing)), *check(schema, thing)]


@pytest.mark.parametrize("name", SETS)
def test_objects_of_kuberay_are_valid(definitions, name):
    objects = [t for t in render(SETS[name]) if t["kind"] in ("RayService", "RayCluster")]
    assert objects
    for thing in objects:
        assert problems(definitions, thing) == []


def test_a_field_of_1_7_is_in_no_object_unless_it_is_asked_for(definitions):
    new = "gcsFaultToleranceOptions.backend"
    asked = rendering.one(render(merged(BUNDLES, EMBEDDED)), "RayService")
    known = new in str([path for path in problems(definitions, asked)])
    served = "rocksdb" in str(definitions)
    assert known is not served  # 1.6 refuses it by its path, 1.7 takes it


def test_groups_of_a_cluster_are_ones_that_kuberay_does_not_refuse():
    """What the operator checks beyond the definitions (its validation.go)."""
    for values in SETS.values():
        for name, spec in clusters(render(values)).items():
            assert len(name) <= 47
            groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
            for group in groups:
                assert "resources" not in group
                assert "labels" not in group["rayStartParams"]
                assert all(isinstance(v, str) for v in group["rayStartParams"].values())
                assert "restartPolicy" not in group["template"]["spec"]
                ports = {p["name"] for p in group["template"]["spec"]["containers"][0]["ports"]}
                assert {"serve", "metrics"} <= ports
                names = [e["name"] for e in group["template"]["spec"]["containers"][0]["env"]]
                assert len(set(names)) == len(names)
                assert not {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & set(names)
            for group in spec["workerGroupSpecs"]:
                assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
