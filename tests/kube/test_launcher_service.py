"""Deploying to a RayService: made, updated in place, beside others, and never one of Helm's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrun.config import ConfigError, validate
from rayrun.kube.service import Deployment, applications, replacing
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.serve_options import ServeOptions
from tests.kube.api_routes import Answer, Request
from tests.kube.simulated import Simulated, simulated

Json = Any
SERVICES = ("ray.io", "rayservices")


@pytest.fixture
def sim(
    definitions_1_6: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Simulated]:
    with simulated(definitions_1_6, place=str(tmp_path)) as found:
        monkeypatch.setenv("KUBECONFIG", str(found.server.kubeconfig(tmp_path / "kubeconfig")))
        for name in ("scorer", "shop"):
            found.server.routes.backends["default", f"{name}-serve-svc", "8000"] = answers(found)
        yield found


def answers(cluster: Simulated) -> Any:
    """What the applications say at `…/healthz`: the model that each was told, once it runs."""

    def answer(request: Request) -> Answer:
        for head in cluster.kuberay.clusters.heads.values():
            for app in (head.serve or {}).get("applications", []):
                if request.path == f"{app['route_prefix'].rstrip('/')}/healthz":
                    return Answer({"ready": True, "model": app["args"]["model"]})
        return Answer({})

    return answer


def deployment(
    model: str, program: str = "infnet", name: str = "scorer", **given: Any
) -> Deployment:
    prefix = given.pop("route_prefix", "/scorer")
    options = ServeOptions(
        route_prefix=prefix, replicas=given.pop("replicas", 1), live="s3://b/live"
    )
    base = {"type": "kuberay", "image": "example.com/ours:1", "workers": 2}
    compute = validate(KubeRayCompute, base | given, where="the test")
    bundle = f"s3://bucket/{name}/{model}"
    return Deployment(program, name, bundle=bundle, digest=model, compute=compute, options=options)


def live(cluster: Simulated, name: str = "scorer") -> Json:
    return cluster.server.store.get(SERVICES, "default", name)


def test_a_service_is_made_and_updated_in_place_until_the_new_version_answers(sim, capfd):
    url, replaced = deployment("sha256:1").put_up(sim.clock)
    assert url == "http://scorer-serve-svc.default.svc:8000/scorer"
    assert not replaced
    made = live(sim)
    assert applications(made) == ["scorer"]
    assert "infnet-ray/run" not in made["metadata"]["labels"]
    assert "ownerReferences" not in made["metadata"]
    pods = sim.pods()
    assert deployment("sha256:2", replicas=2).put_up(sim.clock) == (url, True)
    (app,) = yaml.safe_load(live(sim)["spec"]["serveConfigV2"])["applications"]
    assert app["import_path"] == "infnet.serve.application:build"
    assert app["args"]["model"] == "sha256:2"
    assert app["args"]["set"]["serve.replicas"] == 2
    assert "serve.live" not in app["args"]["set"]
    assert sim.pods() == pods, "in place: no other cluster"
    assert "RayService scorer in default: is updated" in capfd.readouterr().err


def test_another_image_starts_a_second_cluster_and_moves_over(sim):
    deployment("sha256:1").put_up(sim.clock)
    before = live(sim)["status"]["activeServiceStatus"]["rayClusterName"]
    deployment("sha256:2", image="example.com/ours:2").put_up(sim.clock)
    assert live(sim)["status"]["activeServiceStatus"]["rayClusterName"] != before


def test_two_applications_share_a_service_and_both_must_run(sim):
    deployment("sha256:1", service="shop").put_up(sim.clock)
    other = deployment(
        "sha256:9", "layer-select", "recommender", service="shop", route_prefix="/recommender"
    )
    other.put_up(sim.clock)
    assert applications(live(sim, "shop")) == ["recommender", "scorer"]
    with pytest.raises(ConfigError, match=r"route_prefix \(/scorer\) is that of .* 'scorer' of"):
        deployment("sha256:3", name="another", service="shop").put_up(sim.clock)


def test_a_service_of_helm_is_not_touched(sim):
    deployment("sha256:1").put_up(sim.clock)

    def adopt(one: Json) -> None:
        one["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "Helm"
        one["metadata"]["annotations"] = {
            "meta.helm.sh/release-name": "shop",
            "meta.helm.sh/release-namespace": "default",
        }

    sim.server.store.edit(SERVICES, "default", "scorer", adopt)
    before = live(sim)["spec"]
    with pytest.raises(
        ConfigError,
        match=r"managed by Helm and is not touched.*helm upgrade shop .*applications.scorer.bundle=",
    ):
        deployment("sha256:2").put_up(sim.clock)
    assert live(sim)["spec"] == before
    sim.server.store.edit(
        SERVICES,
        "default",
        "scorer",
        lambda one: one["metadata"].update(labels={}, annotations={}),
    )
    with pytest.raises(ConfigError, match="a RayService scorer in default that is not ours"):
        deployment("sha256:2").put_up(sim.clock)


def test_an_update_that_fails_is_undone_and_says_why(sim, monkeypatch):
    deployment("sha256:1").put_up(sim.clock)
    heads = list(sim.kuberay.clusters.heads.values())
    for head in heads:
        told = head.applications

        def failing(now: float, told: Any = told, head: Any = head) -> Json:
            found = told(now)
            if "sha256:2" in json.dumps(head.serve):
                found["scorer"] |= {
                    "status": "DEPLOY_FAILED",
                    "message": "rayrun.config.ConfigError: args.model must be the digest",
                }
            return found

        head.applications = failing
    with pytest.raises(
        ConfigError, match="does not start: args.model must be the digest\n  .*set back to what was"
    ):
        deployment("sha256:2").put_up(sim.clock)
    (app,) = yaml.safe_load(live(sim)["spec"]["serveConfigV2"])["applications"]
    assert app["args"]["model"] == "sha256:1"


def test_a_new_service_whose_image_cannot_be_pulled_is_told(sim):
    sim.kuberay.plan.start.kind = "image"
    with pytest.raises(
        ConfigError, match=r"cannot be pulled(.|\n)*kubectl delete rayservice scorer"
    ):
        deployment("sha256:1").put_up(sim.clock)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"service": "s" * 48}, "must be a name of at most 47 characters"),
        ({"queue": "team"}, "compute.queue .* is for jobs"),
        ({"replicas": 3}, r"serve.replicas × serve.cpus_per_replica \(3 × 1 = 3\) needs more CPUs"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_anything_is_asked(given, message):
    with pytest.raises(ConfigError, match=message):
        deployment("sha256:1", **given)
    compute = KubeRayCompute(type="kuberay", image="x")
    with pytest.raises(ConfigError, match="inputs.bundle must be s3://"):
        Deployment(
            "infnet", "scorer", bundle="/b", digest="1", compute=compute, options=ServeOptions()
        )


def test_a_patch_removes_what_is_not_there_any_more():
    old = {"a": 1, "b": {"c": 1, "d": [1]}, "e": {}}
    new = {"b": {"d": [2]}, "f": 1}
    assert replacing(old, new) == {"a": None, "b": {"c": None, "d": [2]}, "e": None, "f": 1}
