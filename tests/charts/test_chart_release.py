"""Helm 4 installs, upgrades, rolls back and uninstalls the chart at an API server that validates."""

import json
import os
import subprocess
import time

import helm_python
import pytest
from rendering import CHART, merged, preset

from tests.kube import kuberay_definitions
from tests.kube.api_server import ApiServer
from tests.kube.fake_kuberay import FakeKubeRay
from tests.kube.fake_plan import Plan

NAMESPACE, RELEASE = "ml", "shop"
SERVICE = "shop-infnet-ray"


@pytest.fixture
def helm(request, tmp_path):
    """Makes a server that serves the objects of a version of KubeRay, and Helm that speaks to it."""
    made: list[ApiServer] = []

    def make(version: str):
        found = []
        if version:
            if why := kuberay_definitions.missing():
                pytest.skip(why)
            found = kuberay_definitions.read(version, request.config.cache.mkdir("kuberay"))
        api = ApiServer(definitions=found, namespaces=("default", NAMESPACE))
        made.append(api)
        config = api.kubeconfig(tmp_path / "kubeconfig", namespace=NAMESPACE)
        return api, helm_python.Config(kubeconfig_path=config, namespace=NAMESPACE)

    yield make
    for api in made:
        api.stop()
        assert not api.failures


def service(api):
    resource = api.store.resources.find("ray.io", "v1", "rayservices")
    return json.loads(json.dumps(api.store.get(resource.key, NAMESPACE, SERVICE)))


def conditions(api):
    """Those that are true."""
    found = service(api).get("status", {}).get("conditions", [])
    return {one["type"] for one in found if one["status"] == "True"}


def wait_until(ready):
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_release_goes_forth_and_back_and_leaves_nothing(helm):
    api, config = helm("1.6.1")
    before = api.objects()
    with config:
        config.install(CHART, RELEASE, preset("laptop"))
        there = set(api.objects()) - set(before)
        assert {
            f"RayService/{SERVICE}",
            f"Role/{SERVICE}-launcher",
            f"ConfigMap/{SERVICE}-serve",
        } <= there
        assert not any(name.startswith("Pod/") for name in there)  # tests are hooks
        first = service(api)

        another = {"applications": {"scorer": {"bundle": "s3://models/scorer/8"}}}
        config.upgrade(CHART, RELEASE, preset("laptop", another))
        by_model = service(api)
        assert by_model["metadata"]["uid"] == first["metadata"]["uid"]
        assert by_model["spec"]["rayClusterConfig"] == first["spec"]["rayClusterConfig"]
        assert "s3://models/scorer/8" in by_model["spec"]["serveConfigV2"]

        config.upgrade(CHART, RELEASE, preset("laptop", merged(another, {"image": {"tag": "2"}})))
        by_image = service(api)
        assert by_image["spec"]["serveConfigV2"] == by_model["spec"]["serveConfigV2"]
        assert by_image["spec"]["rayClusterConfig"] != first["spec"]["rayClusterConfig"]

        config.rollback(RELEASE, version=1)
        assert service(api)["spec"] == first["spec"]
        assert [one["status"] for one in config.history(RELEASE)][-1] == "deployed"

        config.uninstall(RELEASE)
    assert api.objects() == before


def test_helm_3_does_the_same(helm, helm3, tmp_path):
    api, _ = helm("1.6.1")
    before = api.objects()
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}

    def run(*words, values=None):
        if values is not None:
            (tmp_path / "values.yaml").write_text(json.dumps(values))
            words = (*words, str(CHART), "--values", str(tmp_path / "values.yaml"))
        done = subprocess.run(
            [helm3, *words, "--namespace", NAMESPACE],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("install", RELEASE, values=preset("laptop"))
    assert f"helm test {RELEASE} --namespace {NAMESPACE}" in said
    first = service(api)["spec"]
    changed = {"applications": {"recommender": None}, "image": {"tag": "2"}}
    run("upgrade", RELEASE, values=preset("laptop", changed))
    assert "recommender" not in service(api)["spec"]["serveConfigV2"]
    run("rollback", RELEASE, "1")
    assert service(api)["spec"] == first
    run("uninstall", RELEASE)
    assert api.objects() == before


def test_topology_split_changes_one_service_alone(helm):
    api, config = helm("1.7")
    split = {"topology": "split"}
    resource = api.store.resources.find("ray.io", "v1", "rayservices")

    def generation(name):
        return api.store.get(resource.key, NAMESPACE, f"{SERVICE}-{name}")["metadata"]["generation"]

    with config:
        config.install(CHART, RELEASE, preset("laptop", split))
        assert (generation("scorer"), generation("recommender")) == (1, 1)
        newer = {"applications": {"scorer": {"image": {"tag": "2"}}}}
        config.upgrade(CHART, RELEASE, preset("laptop", split, newer))
        assert (generation("scorer"), generation("recommender")) == (2, 1)
        config.uninstall(RELEASE)
    assert api.objects("RayService") == []


def test_without_kuberay_helm_says_which_kind_nobody_serves(helm):
    api, config = helm("")
    before = api.objects()
    with (
        config,
        pytest.raises(
            helm_python.HelmError, match=r'no matches for kind "RayService" in version "ray.io/v1"'
        ),
    ):
        config.install(CHART, RELEASE, preset("laptop"))
    assert set(api.objects()) - set(before) <= {
        n for n in api.objects() if n.startswith("Secret/sh.helm")
    }


def test_a_field_that_the_operator_is_too_old_for_is_refused_by_its_path(helm):
    """`kuberay.version` says 1.7, the cluster serves 1.6."""
    asked = {"kuberay": {"version": "1.7"}, "gcsFaultTolerance": {"backend": "embedded"}}
    _, config = helm("1.6.1")
    with config, pytest.raises(helm_python.HelmError, match=r"gcsFaultToleranceOptions\.\w+"):
        config.install(CHART, RELEASE, preset("laptop", asked))


def test_helm_asks_the_applications_of_a_whole_cluster_and_leaves_nothing(helm):
    """With a simulated operator and kubelet, in real time."""
    api, config = helm("1.6.1")
    kuberay = FakeKubeRay(api, Plan(pod_starts_s=0.1))
    before = api.objects()
    with config:
        config.install(CHART, RELEASE, preset("laptop"), wait="watcher", timeout=120)
        # Helm takes a RayService that has no status yet for ready: `helm test` is what tells
        wait_until(lambda: "Ready" in conditions(api))
        status = service(api)["status"]
        served = status["activeServiceStatus"]["applicationStatuses"]
        assert {name: one["status"] for name, one in served.items()} == {
            "scorer": "RUNNING",
            "recommender": "RUNNING",
        }
        assert len(kuberay.pods("head", NAMESPACE)) == 1
        assert len(kuberay.pods("worker", NAMESPACE)) == 2
        config.test(RELEASE, timeout=60)
        assert not any("-test-" in name for name in api.objects("Pod"))  # answered, and gone
        config.uninstall(RELEASE, wait="watcher", timeout=60)
    wait_until(lambda: api.objects() == before)  # pods take their leave
    assert kuberay.failures == []
