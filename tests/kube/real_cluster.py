"""The cluster of $KUBECONFIG, as the launcher's suite uses one: a namespace and an S3 server of its own.

Pods and this machine reach the same s3:// places by different endpoints: a Service inside, a forwarded
port here.
"""

import functools
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rayrun.kube.clock import RealClock

Json = Any

IMAGE, S3_IMAGE = "KUBE_TEST_IMAGE", "KUBE_TEST_S3_IMAGE"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
BUCKET = "launcher"
NOT_OURS = {"ConfigMap/kube-root-ca.crt", "Pod/s3", "Service/s3"}
START_S = 300.0


def missing() -> str:
    """Why the suite cannot run on a real cluster; empty when it can."""
    if not os.environ.get("KUBECONFIG"):
        return "set KUBECONFIG to the configuration of a cluster with KubeRay"
    if not Path(os.environ["KUBECONFIG"]).is_file():
        return f"KUBECONFIG must name one file that is there, found {os.environ['KUBECONFIG']}"
    if not os.environ.get(IMAGE):
        return f"set {IMAGE} to our image (Containerfile), as the nodes of the cluster pull it"
    from kubernetes import client, config

    try:
        # By name: the client looks at KUBECONFIG when it is imported.
        found = config.new_client_from_config(os.environ["KUBECONFIG"])
        api = client.CustomObjectsApi(found)
        api.list_cluster_custom_object("ray.io", "v1", "rayjobs", limit=1)
    except client.ApiException as error:
        if error.status == 404:
            return "install KubeRay's operator: the cluster of KUBECONFIG serves no RayJob"
        raise
    return ""


class RealCluster:
    """One namespace, for one test."""

    real = True
    image = os.environ.get(IMAGE, "")

    def __init__(self, folder: Path) -> None:
        from kubernetes import client, config

        self.namespace = f"infnet-test-{secrets.token_hex(3)}"
        self.clock = RealClock()
        self.api = config.new_client_from_config(os.environ["KUBECONFIG"])
        self.core: Any = client.CoreV1Api(self.api)
        self.custom: Any = client.CustomObjectsApi(self.api)
        self.place = f"s3://{BUCKET}/{self.namespace}"
        self.compute: Json = {
            "env": {**KEYS, "AWS_ENDPOINT_URL": f"http://s3.{self.namespace}.svc:5000"},
            "memory_per_worker": "2Gi",
            "cpu_request_per_worker": "200m",
            "head": {"cpus": "200m", "memory": "3Gi"},
            "namespace": self.namespace,
        }
        self.kubeconfig = folder / "kubeconfig"
        content = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text(encoding="utf-8"))
        for context in content["contexts"]:
            context["context"]["namespace"] = self.namespace
        self.kubeconfig.write_text(yaml.safe_dump(content), encoding="utf-8")
        self.kubeconfig.chmod(0o600)

    def after(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def until(self, ready: Any, at_most_s: float = 600.0) -> None:
        """Wait until something is so; an error after `at_most_s`."""
        until = time.monotonic() + at_most_s
        while not ready():
            assert time.monotonic() < until, f"not so after {at_most_s:g} s"
            time.sleep(1.0)

    def pods(self, role: str = "") -> list[str]:
        """Names of Ray's pods, of a role."""
        selector = "ray.io/is-ray-node=yes" + (f",ray.io/node-type={role}" if role else "")
        found = self.core.list_namespaced_pod(self.namespace, label_selector=selector)
        return [pod.metadata.name for pod in found.items if not pod.metadata.deletion_timestamp]

    def kill(self, role: str) -> None:
        """The first pod of a role is deleted by force."""
        name = self.pods(role)[0]
        self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)

    def jobs(self) -> list[Json]:
        """The RayJobs that are there."""
        return self._custom("rayjobs")

    def objects(self) -> list[str]:
        """What of ours is there, as `Kind/name`, sorted."""
        found: list[str] = []
        for plural in ("rayjobs", "rayclusters", "rayservices"):
            found += [f"{one['kind']}/{one['metadata']['name']}" for one in self._custom(plural)]
        for kind in ("pod", "service", "secret", "config_map", "persistent_volume_claim"):
            listed = getattr(self.core, f"list_namespaced_{kind}")(self.namespace)
            name = kind.title().replace("_", "")
            found += [f"{name}/{one.metadata.name}" for one in listed.items]
        return sorted(set(found) - NOT_OURS)

    @contextmanager
    def open(self) -> Iterator["RealCluster"]:
        """The namespace and its S3 server, which end with it."""
        meta = {"name": self.namespace, "labels": {"app.kubernetes.io/part-of": "infnet-ray-tests"}}
        self.core.create_namespace({"metadata": meta})
        try:
            with self._storage() as endpoint:
                before = {name: os.environ.get(name) for name in (*KEYS, "AWS_ENDPOINT_URL")}
                os.environ |= {**KEYS, "AWS_ENDPOINT_URL": endpoint}
                try:
                    import boto3

                    boto3.client("s3").create_bucket(Bucket=BUCKET)
                    yield self
                finally:
                    for name, value in before.items():
                        os.environ.pop(name, None)
                        if value is not None:
                            os.environ[name] = value
        finally:
            self.core.delete_namespace(self.namespace)

    def _custom(self, plural: str) -> list[Json]:
        found = self.custom.list_namespaced_custom_object("ray.io", "v1", self.namespace, plural)
        return found["items"]

    @contextmanager
    def _storage(self) -> Iterator[str]:
        container = {
            "name": "s3",
            "image": os.environ.get(S3_IMAGE) or self.image,
            "command": ["python", "-m", "moto.server", "-H", "0.0.0.0", "-p", "5000"],
            "readinessProbe": {"tcpSocket": {"port": 5000}, "periodSeconds": 1},
        }
        meta = {"name": "s3", "labels": {"app": "s3"}}
        self.core.create_namespaced_pod(
            self.namespace, {"metadata": meta, "spec": {"containers": [container]}}
        )
        spec = {"selector": {"app": "s3"}, "ports": [{"port": 5000}]}
        self.core.create_namespaced_service(
            self.namespace, {"metadata": {"name": "s3"}, "spec": spec}
        )
        self.until(self._serves, START_S)
        here = _port_here()
        with forwarded(self.kubeconfig, self.namespace, "service/s3", 5000, here) as port:
            yield f"http://127.0.0.1:{port}"

    def _serves(self) -> bool:
        pod = self.core.read_namespaced_pod("s3", self.namespace)
        for status in pod.status.container_statuses or ():
            ended = status.state.terminated or status.last_state.terminated
            assert ended is None, (
                f"the S3 server ended ({ended.reason}); {S3_IMAGE} must name an image with "
                "`python -m moto.server`"
            )
        return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())


@functools.cache
def _port_here() -> int:
    """The same for all tests of a process: clients of S3 are kept with their endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def forwarded(
    kubeconfig: Path, namespace: str, what: str, port: int, here: int = 0
) -> Iterator[int]:
    """A port here (0: any) that is one in the cluster, by `kubectl port-forward`."""
    command = ["kubectl", "--kubeconfig", str(kubeconfig), "--namespace", namespace]
    process = subprocess.Popen(
        [*command, "port-forward", what, f"{here or ''}:{port}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        match = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert match is not None, f"kubectl port-forward {what} told no port"
        yield int(match[1])
    finally:
        process.kill()
        process.wait()
