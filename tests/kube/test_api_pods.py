"""What stands behind objects: pods' logs, services through the proxy, watches of kubectl and Go."""

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from tests.kube.api_answers import ApiError
from tests.kube.api_routes import Answer, Request
from tests.kube.api_server import ApiServer
from tests.kube.fake_kubelet import FakeKubelet
from tests.kube.fake_plan import Plan, Start

Json = Any


@pytest.fixture
def core(api: ApiServer, tmp_path: Path) -> Any:
    file = api.kubeconfig(tmp_path / "kubeconfig")
    return client.CoreV1Api(config.new_client_from_config(str(file)))


def refused(call: Any, *args: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(client.ApiException) as caught:
        call(*args, **options)
    assert caught.value.body is not None
    return caught.value.status or 0, json.loads(caught.value.body)["message"]


def pod(name: str, *containers: str) -> Json:
    spec = {"containers": [{"name": one, "image": "example.com/x:1"} for one in containers]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def test_logs_of_pods(api: ApiServer, core: Any) -> None:
    core.create_namespaced_pod("default", pod("p", "main", "beside"))
    api.routes.logs["default", "p", "main"] = "one\ntwo\nthree\n"
    read = core.read_namespaced_pod_log
    assert read("p", "default", container="main", tail_lines=2) == "two\nthree\n"
    assert refused(read, "p", "default") == (
        400,
        "a container name must be specified for pod p, choose one of: [main beside]",
    )
    said = 'previous terminated container "main" in pod "p" not found'
    assert refused(read, "p", "default", container="main", previous=True) == (400, said)
    assert refused(read, "none", "default")[0] == 404


def test_a_pod_whose_image_is_not_there_has_no_log(api: ApiServer, core: Any) -> None:
    FakeKubelet(api, Plan(pod_starts_s=0.1, start=Start("image")))
    core.create_namespaced_pod("default", pod("p", "main"))

    def waits() -> bool:
        found = api.store.get(("", "pods"), "default", "p")["status"].get("containerStatuses")
        return bool(found and found[0]["state"].get("waiting"))

    assert api.clock.wait(waits, api.clock.now() + 10)
    assert refused(core.read_namespaced_pod_log, "p", "default") == (
        400,
        """container "main" in pod "p" is waiting to start: image can't be pulled""",
    )


def test_services_through_the_proxy(api: ApiServer, core: Any) -> None:
    def echo(request: Request) -> Answer:
        if request.path == "/refuse":
            raise ApiError(418, "no", text="short and stout")
        sent = request.headers.get("x-ray-authorization")
        return Answer([request.path, request.query, request.headers.get("authorization"), sent])

    spec = {"ports": [{"name": "dashboard", "port": 8265}]}
    core.create_namespaced_service("default", {"metadata": {"name": "head"}, "spec": spec})
    base = f"{api.url}/api/v1/namespaces/default/services/http:head:8265/proxy"
    get = core.connect_get_namespaced_service_proxy_with_path
    code, text = refused(get, "head:8265", "default", "x")
    assert (code, text) == (503, 'no endpoints available for service "head"')
    api.routes.backends["default", "head", "8265"] = echo
    headers = {"Authorization": "Bearer admin-token", "X-Ray-Authorization": "Bearer ray"}
    asked = urllib.request.Request(f"{base}/api/jobs/?limit=1", headers=headers)
    # The API server keeps its own credentials to itself.
    with urllib.request.urlopen(asked) as answer:
        assert json.load(answer) == ["/api/jobs/", {"limit": "1"}, None, "Bearer ray"]
    assert refused(get, "http:none:8265", "default", "x")[0] == 404
    assert 'no service port "1" found' in refused(get, "http:head:1", "default", "x")[1]
    with pytest.raises(urllib.error.HTTPError, match="418"):
        urllib.request.urlopen(f"{base}/refuse")


def test_a_watch_can_begin_with_all_there_is(api: ApiServer, core: Any) -> None:
    core.create_namespaced_pod("default", pod("p", "main"))
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1"
    query += "&allowWatchBookmarks=true"
    with urllib.request.urlopen(f"{api.url}/api/v1/namespaces/default/pods?{query}") as answer:
        events = [json.loads(line) for line in answer]
    assert [event["type"] for event in events] == ["ADDED", "BOOKMARK", "BOOKMARK"]
    notes = events[1]["object"]["metadata"]["annotations"]
    assert notes == {"k8s.io/initial-events-end": "true"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl(api_of_kuberay: ApiServer, tmp_path: Path) -> None:
    kubeconfig = api_of_kuberay.kubeconfig(tmp_path / "kubeconfig")
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(tmp_path)}

    def kubectl(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["kubectl", *arguments], env=environment, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    file = tmp_path / "job.json"
    head = {"rayStartParams": {}, "template": pod("unused", "ray")}
    head["template"] = {"spec": head["template"]["spec"]}
    job: Json = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "j"}}
    job["spec"] = {"entrypoint": "x", "rayClusterSpec": {"headGroupSpec": head}}
    file.write_text(json.dumps(job))
    assert kubectl("apply", "-f", str(file)) == (0, "rayjob.ray.io/j created\n")
    assert kubectl("apply", "-f", str(file)) == (0, "rayjob.ray.io/j unchanged\n")
    patch = '{"spec": {"suspend": true}}'
    kubectl("patch", "rayjob", "j", "--type=merge", "-p", patch)
    assert kubectl("get", "rayjob", "j", "-o", "jsonpath={.spec.suspend}") == (0, "true")
    job["spec"]["entrypont"] = job["spec"].pop("entrypoint")
    file.write_text(json.dumps(job))
    code, said = kubectl("apply", "-f", str(file))
    assert code == 1
    assert 'strict decoding error: unknown field "spec.entrypont"' in said
    code, said = kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    assert ".spec.entrypont: field not declared in schema" in said
    assert kubectl("delete", "rayjob", "j")[0] == 0
    assert api_of_kuberay.objects() == []
