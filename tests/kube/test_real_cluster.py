"""The fixture for a real cluster, asked against the stub server in real time: what it reads and does."""

from pathlib import Path
from typing import Any

import pytest

from tests.kube import real_cluster
from tests.kube.api_server import ApiServer
from tests.kube.fake_kuberay import FakeKubeRay
from tests.kube.fake_plan import Plan
from tests.kube.real_cluster import RealCluster
from tests.kube.test_fake_kuberay import ray_job

Json = Any


def test_what_is_missing_is_named(
    api: ApiServer, api_of_kuberay: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert real_cluster.missing().startswith("set KUBECONFIG")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert real_cluster.missing().startswith("KUBECONFIG must name one file that is there")
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "without")))
    monkeypatch.delenv("KUBE_TEST_IMAGE", raising=False)
    assert real_cluster.missing().startswith("set KUBE_TEST_IMAGE")
    monkeypatch.setenv("KUBE_TEST_IMAGE", "example.com/infnet:1")
    assert real_cluster.missing().startswith("install KubeRay's operator")
    monkeypatch.setenv("KUBECONFIG", str(api_of_kuberay.kubeconfig(tmp_path / "with")))
    assert real_cluster.missing() == ""


def test_it_sees_the_objects_of_its_namespace_and_kills_pods(
    api_of_kuberay: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, kuberay = api_of_kuberay, FakeKubeRay(api_of_kuberay, Plan(pod_starts_s=0.1))
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "given")))
    cluster = RealCluster(tmp_path)
    assert cluster.namespace in cluster.kubeconfig.read_text()
    of = {"apiVersion": "v1", "kind": "Namespace"}
    server.create({**of, "metadata": {"name": cluster.namespace}})
    roots = {"name": "kube-root-ca.crt", "namespace": cluster.namespace}
    server.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": roots})
    assert cluster.objects() == []
    job = ray_job()
    job["metadata"]["namespace"] = cluster.namespace
    server.create(job)
    cluster.until(lambda: len(cluster.pods()) == 3, 30)
    (head,) = cluster.pods("head")
    uid = server.store.get(("", "pods"), cluster.namespace, head)["metadata"]["uid"]
    cluster.kill("head")
    cluster.until(lambda: len(cluster.pods("head")) == 1, 30)
    again = server.store.get(("", "pods"), cluster.namespace, head)["metadata"]["uid"]
    assert again != uid
    assert [one["metadata"]["name"] for one in cluster.jobs()] == ["job"]
    kinds = {name.partition("/")[0] for name in cluster.objects()}
    assert kinds == {"Pod", "RayCluster", "RayJob", "Service"}
    cluster.core.delete_namespace(cluster.namespace)
    cluster.until(lambda: cluster.objects() == [], 60)
    assert kuberay.failures == []
