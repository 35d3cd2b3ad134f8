"""The RayJob of a verb, as files: what a change of a line does to it is seen in review."""

import json
import os
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from rayrun import yaml12
from rayrun.config import Config, ConfigError, validate
from rayrun.kube.names import Caller, attempt_name, job_name, label
from rayrun.kube.owner import owner_of
from rayrun.kube.pods import Task, bytes_of, times
from rayrun.kube.rayjob import rayjob
from rayrun.ray.compute import Compute
from rayrun.ray.request import Request, request
from rayrun.verb import Flag, Verb

GOLDEN = Path(__file__).parents[2] / "golden" / "kube"


class Toy(Config):
    name: str = "toy"
    rows: int = 3
    compute: Compute


VERB = Verb(
    name="train",
    help="",
    run="rayrun.verb:resolve",
    config=Toy,
    flags=(Flag(name="split", help="", default="test"), Flag(name="data", help="", place=True)),
    store=True,
)


def asked(
    verb: Verb = VERB, out: str = "s3://bucket/runs/out", rows: int = 3, **compute: Any
) -> Request:
    given = {"type": "kuberay", "image": "registry.example.com/ours:1", **compute}
    config = validate(Toy, {"rows": rows, "compute": given}, where="the test")
    flags = {"split": "valid", "data": None} if verb is VERB else {}
    return request("infnet", verb, config, flags, out=out, kept="")


def made(
    wanted: Request, caller: Caller | None = None, task: Task | None = None, **more: Any
) -> Any:
    manifest = rayjob(wanted, caller=caller or Caller(), task=task or Task(), **more)
    # What follows from the sources of the moment is no matter of these tests.
    manifest["metadata"]["annotations"]["infnet-ray/sources"] = "sha256:…"
    manifest["spec"]["metadata"]["program"] = "sha256:…"
    return manifest


EVERYTHING = {
    "workers": 4,
    "workers_per_pod": 2,
    "cpus_per_worker": 2,
    "gpus_per_worker": 1,
    "memory_per_worker": "8Gi",
    "cpu_request_per_worker": "1500m",
    "head": {"cpus": "200m", "memory": "2Gi"},
    "shm": "1Gi",
    "ray_version": "2.60.0",
    "image_pull_policy": "Always",
    "image_pull_secrets": ["registry"],
    "service_account": "ray",
    "env": {"AWS_ENDPOINT_URL": "http://s3.example.com"},
    "env_from_secrets": ["s3"],
    "volumes": [{"claim": "data", "mount_path": "/data", "read_only": True}],
    "fs_group": 1000,
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "effect": "NoSchedule"}],
    "token_secret": "ray-token",
    "queue": "team",
    "priority_class": "high",
    "min_workers": 2,
    "backoff_limit": 0,
    "deadline_s": 3600,
    "start_deadline_s": 600,
    "ttl_s": 60,
}
TASK = Task(
    resources={"limits": {"memory": "20Gi", "nvidia.com/gpu": "2"}, "requests": {"cpu": "7"}},
    env=[{"name": "TEAM", "valueFrom": {"secretKeyRef": {"name": "team", "key": "name"}}}],
    node_selector={"zone": "a"},
    tolerations=[{"key": "spot", "operator": "Exists"}],
    affinity={"nodeAffinity": {}},
    volumes=[{"name": "cache", "emptyDir": {}}],
    mounts=[{"name": "cache", "mountPath": "/cache"}],
)
OWNER = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "Workflow",
    "name": "nightly-x2k",
    "uid": "5f1c2a90-0000-4000-8000-000000000000",
    "controller": False,
    "blockOwnerDeletion": False,
}
CASES = {
    "plain": lambda: made(asked(ray_version="2.60.0")),
    "single_pod": lambda: made(asked(ray_version="2.60.0", single_pod=True, workers=2)),
    "everything": lambda: made(
        asked(**EVERYTHING),
        Caller("nightly", "train", "8c9e", "nightly-x2k-17", "uid"),
        TASK,
        namespace="team",
        owner=OWNER,
        attempt=3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_manifest_is_the_golden_one(name, monkeypatch):
    monkeypatch.delenv("INFNET_DATA", raising=False)
    found = yaml12.dump(CASES[name]())
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("GOLDEN_WRITE"):
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8"), "run: make golden"


def container(manifest: Any, group: str = "worker") -> Any:
    spec = manifest["spec"]["rayClusterSpec"]
    one = spec["headGroupSpec"] if group == "head" else spec["workerGroupSpecs"][0]
    return one["template"]["spec"]["containers"][0]


def test_what_is_requested_of_memory_is_the_limit_and_cpu_has_none():
    for group in ("head", "worker"):
        resources = container(made(asked(workers=2)), group)["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"] == "3Gi"
        assert "cpu" not in resources["limits"]
    of_task = Task(resources={"requests": {"memory": "5Gi"}})
    resources = container(made(asked(), task=of_task))["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == "5Gi"


def test_one_pod_has_the_memory_of_the_head_and_of_its_workers():
    resources = container(made(asked(single_pod=True, workers=2)), "head")["resources"]
    assert int(resources["limits"]["memory"]) == 3 * bytes_of("3Gi") == bytes_of(times("3Gi", 3))


def test_deletion_rules_and_shutdown_never_stand_together():
    rules = made(asked())["spec"]
    assert {rule["policy"] for rule in rules["deletionStrategy"]["deletionRules"]} == {"DeleteSelf"}
    ttl: Any = None
    choices: list[Any] = [{"queue": "team"}, {"cleanup": "ttl"}]
    for options in choices:
        ttl = made(asked(**options, ttl_s=7))["spec"]
        assert (ttl["shutdownAfterJobFinishes"], ttl["ttlSecondsAfterFinished"]) == (True, 7)
    for spec in (rules, ttl):
        assert ("deletionStrategy" in spec) != ("shutdownAfterJobFinishes" in spec)


def test_in_the_job_the_cluster_is_the_one_that_runs_it():
    wanted = asked(workers=2, min_workers=1, cpus_per_worker=3)
    inside: Any = validate(Toy, wanted.resolved, where="the job").compute
    assert (inside.type, inside.address) == ("attached", "auto")
    assert (inside.workers, inside.min_workers, inside.cpus_per_worker) == (2, 1, 3)


def test_no_secret_and_no_place_of_this_machine_is_in_the_manifest(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "sesame")
    monkeypatch.setenv("INFNET_DATA", "/home/somebody/data")
    text = json.dumps(rayjob(asked(**EVERYTHING), caller=Caller(), task=TASK))
    assert "sesame" not in text
    assert "/home/somebody" not in text
    monkeypatch.setenv("INFNET_DATA", "s3://bucket/data")
    assert "s3://bucket/data" in made(asked())["spec"]["runtimeEnvYAML"]
    assert "s3://bucket" not in made(asked(env={"INFNET_DATA": "/data"}))["spec"]["runtimeEnvYAML"]


# ---------------------------------------------------------------------------------------------
# Names


def test_the_name_follows_from_what_is_asked_for_and_for_whom():
    name = job_name(asked(), Caller())
    assert re.fullmatch(r"ir-train-[0-9a-f]{12}", name)
    assert job_name(asked(workers=3, image="other:2", namespace="b"), Caller()) == name
    others = {
        job_name(asked(rows=4), Caller()),
        job_name(asked(out="s3://bucket/other"), Caller()),
        job_name(asked(), Caller(run="nightly")),
        job_name(asked(), Caller(run="nightly", step="train")),
        job_name(asked(), Caller(kfp_run="8c9e")),
    }
    assert len(others | {name}) == 6
    pod = Caller(pod="nightly-x2k-17", pod_uid="1")
    assert job_name(asked(), pod) == name, "another pod of the same step finds its job"


def test_a_name_is_short_enough_for_kuberay_at_any_attempt():
    verb = Verb(name="a-verb-with-a-very-long-name", help="", run="x:y", config=Toy)
    name = attempt_name(job_name(asked(verb), Caller()), 1_000_000)
    assert name.startswith("ir-a-verb-with-a-very-l-")
    assert len(name) <= 47
    assert attempt_name("ir-train-0", 1) == "ir-train-0"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nightly-17", "nightly-17"),
        ("Läufe/1 b", r"L-ufe-1-b-[0-9a-f]{8}"),
        ("x" * 80, r"x{54}-[0-9a-f]{8}"),
    ],
)
def test_a_label_holds_any_name_and_tells_them_apart(text, found):
    assert re.fullmatch(found, label(text))
    assert label(text) == label(text) != label(text + "'")


def test_only_the_controller_of_the_steps_pod_becomes_the_owner(monkeypatch):
    assert owner_of(None, Caller()) is None  # type: ignore[arg-type] - nobody is asked
    assert owner_of(None, Caller(pod="p")) is None, "outside a pod"  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": "team", "cleanup": "rules"}, "a queue exclude each other: Kueue needs"),
        ({"workers": 3, "workers_per_pod": 2}, "must be a multiple of workers_per_pod"),
        ({"min_workers": 2}, r"min_workers \(2\) must be at most workers \(1\)"),
        ({"single_pod": True, "min_workers": 1}, "single_pod has no pods that can be lost"),
        ({"memory_per_worker": "3GB"}, r"an amount of memory as Kubernetes writes it \(3Gi"),
        ({"cpu_request_per_worker": "a"}, r"an amount of CPU as Kubernetes writes it \(200m"),
        ({"namespace": "My Team"}, "a name of Kubernetes .*found 'My Team'"),
        ({"env_from_secrets": ["S3_KEYS"]}, "the name of an object of Kubernetes .*'S3_KEYS'"),
        ({"env": {"a-b": "1"}}, "the name of an environment variable of a shell, found 'a-b'"),
        ({"env": {"RAY_AUTH_TOKEN": "1"}}, "env.RAY_AUTH_TOKEN is set by KubeRay or by us"),
        ({"dashboard": "yes"}, "must be auto, direct, proxy or http"),
        ({"volumes": [{"claim": "a", "mount_path": "data"}]}, "an absolute path without a colon"),
        ({"volumes": [{"claim": "a", "mount_path": "/dev/shm"}]}, "/dev/shm more than once"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_asked(options, message):
    with pytest.raises(ConfigError, match=message):
        asked(**options)


def test_what_the_pods_do_not_reach_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--out must be s3://… or lie on a volume .*/here/out"):
        made(asked(out="/here/out"))
    with pytest.raises(ConfigError, match=r"--out \(/claim/out\) .*that is not mounted here"):
        made(asked(out="/claim/out", volumes=[{"claim": "a", "mount_path": "/claim"}]))
    read_only = [{"claim": "a", "mount_path": str(tmp_path), "read_only": True}]
    with pytest.raises(ConfigError, match="--out must be s3://"):
        made(asked(out=str(tmp_path / "out"), volumes=read_only))
    made(asked(out=str(tmp_path / "out"), volumes=[{"claim": "a", "mount_path": str(tmp_path)}]))


def test_an_image_and_room_for_rays_objects_are_required(monkeypatch):
    monkeypatch.delenv("INFNET_IMAGE", raising=False)
    with pytest.raises(ConfigError, match=r"compute\.image is required .* or INFNET_IMAGE"):
        made(asked(image=""))
    monkeypatch.setenv("INFNET_IMAGE", "ours:2")
    assert container(made(asked(image="")))["image"] == "ours:2"
    with pytest.raises(ConfigError, match=r"compute\.shm must be at least 100Mi.*found 64Mi"):
        made(asked(shm="64Mi"))


def test_a_task_that_is_no_json_is_refused():
    with pytest.raises(
        ConfigError, match="INFNET_TASK_CONFIG must hold a JSON object, found '\\['"
    ):
        Task.of({"INFNET_TASK_CONFIG": "["})


@pytest.mark.parametrize("name", CASES)
def test_its_pods_are_what_kubernetes_takes(name):
    spec = CASES[name]()["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        template = group["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, "1.34", strict=True)
