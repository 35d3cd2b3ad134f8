"""How the Kubernetes API and services behind it are reached."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrun.kube import connection
from rayrun.kube.api import Api, part, path_of
from rayrun.kube.connection import Connection, configured, in_cluster
from rayrun.kube.dashboard import Dashboard
from rayrun.ray.compute import KubeRayCompute

NAMES = {"token": "SERVICE_TOKEN_FILENAME", "ca.crt": "SERVICE_CERT_FILENAME"}


@pytest.fixture
def in_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service account, as Kubernetes mounts it."""
    for name, text in (("token", "first"), ("ca.crt", "a certificate"), ("namespace", "team\n")):
        (tmp_path / name).write_text(text)
    for name, constant in NAMES.items():
        place = f"kubernetes.config.incluster_config.{constant}"
        monkeypatch.setattr(place, str(tmp_path / name))
    monkeypatch.setattr(connection, "ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    return tmp_path


def kubeconfig(folder: Path, server: str = "https://example.com:6443") -> Path:
    cluster = {"server": server, "insecure-skip-tls-verify": True}
    content: dict[str, Any] = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "of-file"}}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u"}},
            {"name": "two", "context": {"cluster": "c", "user": "u", "namespace": "second"}},
        ],
        "current-context": "one",
    }
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(content))
    return file


def dashboard(api: Api, way: str = "auto") -> Dashboard:
    return Dashboard(api, KubeRayCompute(type="kuberay", dashboard=way), "job-x1")


def test_in_a_pod_its_service_account_is_used_and_services_are_reached_directly(in_a_pod):
    assert in_cluster()
    assert configured()
    api = Api()
    assert api.connection.host == "https://10.0.0.1:443"
    assert api.namespace == "team"
    assert api.connection.headers() == {"Authorization": "bearer first"}
    assert dashboard(api).address == "http://job-x1-head-svc.team.svc:8265"
    assert Api(namespace="other").namespace == "other"
    (in_a_pod / "token").write_text("second")
    api.renew()
    assert api.connection.headers() == {"Authorization": "bearer second"}


def test_a_kubeconfig_goes_before_the_pods_account_and_services_go_through_the_api(
    in_a_pod, monkeypatch
):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(in_a_pod)))
    api = Api()
    assert (api.connection.host, api.namespace) == ("https://example.com:6443", "default")
    assert api.connection.headers() == {"Authorization": "Bearer of-file"}
    assert Connection.open("two").namespace == "second"
    path = "/api/v1/namespaces/default/services/http:job-x1-head-svc:8265/proxy"
    assert dashboard(api).address == f"https://example.com:6443{path}"
    assert dashboard(api, "http://127.0.0.1:8265/").address == "http://127.0.0.1:8265"
    assert api.connection.tls() is not None


def test_plain_http_has_no_tls_and_nothing_configured_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, "http://127.0.0.1:1")))
    assert Connection.open().tls() is None
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert not configured()


def test_resources_have_the_addresses_that_permissions_name():
    assert path_of("rayjobs.ray.io", "n", "j") == "/apis/ray.io/v1/namespaces/n/rayjobs/j"
    assert path_of("pods/log", "n", "p") == "/api/v1/namespaces/n/pods/p/log"
    assert path_of("events", "n") == "/api/v1/namespaces/n/events"


def test_a_part_that_is_not_there_is_empty():
    assert part({"a": {"b": {"c": 1}}}, "a", "b") == {"c": 1}
    assert part({"a": None}, "a", "b") == part({}, "a") == part({"a": [1]}, "a") == {}
