"""Real Helm, 4 and 3, on the stub server: a small chart from install to uninstall."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.charts.conftest import helm3  # noqa: F401 - a fixture
from tests.kube.api_server import ApiServer
from tests.kube.fake_kubelet import FakeKubelet
from tests.kube.fake_plan import Plan

helm = pytest.importorskip("helm_python", reason="helm-python-sdk, of the dev extra, is missing")

Json = Any

CHART = {
    "Chart.yaml": "apiVersion: v2\nname: small\nversion: 0.1.0\n",
    "values.yaml": "word: one\n",
    "templates/settings.yaml": """\
apiVersion: v1
kind: ConfigMap
metadata: {name: "{{ .Release.Name }}-settings"}
data:
  word: {{ .Values.word | quote }}
{{- if eq .Values.word "one" }}
  first: "yes"
{{- end }}
""",
    "templates/service.yaml": """\
apiVersion: ray.io/v1
kind: RayService
metadata: {name: "{{ .Release.Name }}-serve"}
spec:
  serveConfigV2: "applications: [{name: {{ .Values.word }}}]"
  rayClusterConfig:
    headGroupSpec:
      rayStartParams: {}
      template: {spec: {containers: [{name: ray-head, image: example.com/ray:1}]}}
""",
    "templates/tests/answers.yaml": """\
apiVersion: v1
kind: Pod
metadata: {name: "{{ .Release.Name }}-answers", annotations: {helm.sh/hook: test}}
spec: {restartPolicy: Never, containers: [{name: ask, image: example.com/ray:1}]}
""",
}
SETTINGS, SERVICE = ("", "configmaps"), ("ray.io", "rayservices")


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    for name, text in CHART.items():
        file = tmp_path / "small" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "small"


@pytest.fixture
def server(api_of_kuberay: ApiServer) -> ApiServer:
    FakeKubelet(api_of_kuberay, Plan(pod_starts_s=0.1))
    return api_of_kuberay


def word(server: ApiServer) -> tuple[Json, str]:
    data = server.store.get(SETTINGS, "default", "rel-settings")["data"]
    service = server.store.get(SERVICE, "default", "rel-serve")
    return data, service["spec"]["serveConfigV2"]


FIRST = ({"word": "one", "first": "yes"}, "applications: [{name: one}]")
SECOND = ({"word": "two"}, "applications: [{name: two}]")


@pytest.mark.parametrize("driver", ["secret", "memory"])
def test_helm_4(server: ApiServer, chart: Path, tmp_path: Path, driver: str) -> None:
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
    config = helm.Config(
        kubeconfig_path=str(kubeconfig), namespace="default", storage_driver=driver
    )
    config.install(str(chart), "rel")
    assert word(server) == FIRST
    config.upgrade(str(chart), "rel", {"word": "two"})
    assert word(server) == SECOND  # what the first had and the second has not is gone
    config.test("rel")
    config.rollback("rel", version=1)
    assert word(server) == FIRST
    with pytest.raises(helm.HelmError, match="field not declared in schema"):
        broken = chart / "templates/service.yaml"
        broken.write_text(broken.read_text().replace("serveConfigV2", "serveConfig"))
        config.upgrade(str(chart), "rel")
    config.uninstall("rel")
    assert server.objects() == ["Pod/rel-answers"]  # Helm leaves hooks


def test_helm_3(
    server: ApiServer,
    chart: Path,
    tmp_path: Path,
    helm3: Path,  # noqa: F811 - the fixture
) -> None:
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(tmp_path)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [helm3, *arguments], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("install", "rel", str(chart))
    run("upgrade", "rel", str(chart), "--set", "word=two")
    assert word(server) == SECOND
    assert "Phase:          Succeeded" in run("test", "rel")
    run("rollback", "rel", "1")
    assert word(server) == FIRST
    run("uninstall", "rel")
    assert server.objects() == ["Pod/rel-answers"]
