"""The simulated operator: the states of KubeRay 1.6.1 in their order, and what they leave."""

from typing import Any

import pytest

from tests.kube.fake_kuberay import QUEUE
from tests.kube.fake_plan import Plan, Start, Submission
from tests.kube.simulated import Simulated, simulated

Json = Any

POD = {"spec": {"containers": [{"name": "ray", "image": "example.com/ray:1"}]}}
RULES = {
    "deletionRules": [
        {"policy": "DeleteSelf", "condition": condition | {"ttlSeconds": 60}}
        # The definition allows no other state of the deployment than Failed.
        for condition in ({"jobStatus": "SUCCEEDED"}, {"jobDeploymentStatus": "Failed"})
    ]
}


def ray_job(labels: Json = None, **spec: Any) -> Json:
    cluster = {
        "headGroupSpec": {"rayStartParams": {}, "template": POD},
        "workerGroupSpecs": [
            {"groupName": "workers", "replicas": 2, "rayStartParams": {}, "template": POD}
        ],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "job", "namespace": "default", "labels": labels or {}},
        "spec": {
            "entrypoint": "python train.py",
            "submissionMode": "HTTPMode",
            "rayClusterSpec": cluster,
            **spec,
        },
    }


def states(cluster: Simulated) -> list[str]:
    """Of the job, each once, as they come: deployment state / state in Ray."""
    found: list[str] = []

    def heard(change: Any) -> None:
        status = change.thing.get("status", {})
        if change.key == ("ray.io", "rayjobs"):
            text = f"{status.get('jobDeploymentStatus', '')}/{status.get('jobStatus', '')}"
            if not found or found[-1] != text:
                found.append(text)

    cluster.server.store.listeners.append(heard)
    return found


def status(cluster: Simulated) -> Json:
    return cluster.server.store.get(("ray.io", "rayjobs"), "default", "job")["status"]


def test_a_job_runs_and_its_cluster_is_shut_down(definitions_1_6: list[Json]) -> None:
    with simulated(definitions_1_6) as cluster:
        seen = states(cluster)
        cluster.server.create(ray_job(shutdownAfterJobFinishes=True, ttlSecondsAfterFinished=30))
        cluster.after(50)
        assert len(cluster.kuberay.pods()) == 3
        cluster.after(30)
        assert seen == [
            "/",
            "Initializing/",
            "Running/",
            "Running/PENDING",
            "Running/RUNNING",
            "Complete/SUCCEEDED",
        ]
        assert cluster.server.objects() == ["RayJob/job", "Service/job-head-svc"]
        assert (status(cluster)["succeeded"], status(cluster)["failed"]) == (1, 0)


def test_a_failed_job_gets_a_new_cluster_and_a_new_id(definitions_1_6: list[Json]) -> None:
    plan = Plan([Submission(outcome="FAILED"), Submission()])
    with simulated(definitions_1_6, plan) as cluster:
        seen = states(cluster)
        cluster.server.create(ray_job(backoffLimit=1, deletionStrategy=RULES))
        cluster.until(lambda: "Running/RUNNING" in seen)
        first = status(cluster)
        cluster.until(lambda: "Retrying/FAILED" in seen)
        cluster.until(lambda: seen[-1] == "Running/RUNNING")
        assert status(cluster)["jobId"] != first["jobId"]
        assert status(cluster)["rayClusterName"] != first["rayClusterName"]
        cluster.until(lambda: seen[-1] == "Complete/SUCCEEDED")
        assert status(cluster)["failed"] == 1
        cluster.after(70)
        assert cluster.server.objects() == []


def test_a_lost_head_is_replaced_and_the_job_submitted_again_under_its_id(
    definitions_1_6: list[Json],
) -> None:
    with simulated(definitions_1_6, Plan([Submission(head_lost_s=8.2), Submission()])) as cluster:
        seen = states(cluster)
        cluster.server.create(ray_job())
        cluster.until(lambda: seen[-1] == "Complete/SUCCEEDED")
        first, second = cluster.kuberay.clusters.all_heads
        assert first.gone
        assert list(first.jobs) == list(second.jobs) == [status(cluster)["jobId"]]
        assert status(cluster)["failed"] == 0


def test_kueue_holds_a_job_back(definitions_1_6: list[Json]) -> None:
    with simulated(definitions_1_6, Plan(queued_s=40)) as cluster:
        seen = states(cluster)
        cluster.server.create(ray_job({QUEUE: "team"}, shutdownAfterJobFinishes=True))
        cluster.after(39)
        assert seen[-1] == "Suspended/"
        assert cluster.kuberay.pods() == []
        cluster.after(40)
        assert seen[-1] == "Complete/SUCCEEDED"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("image", "Failed"),
        ("unschedulable", "FailedScheduling"),
        ("quota", "FailedToCreateHeadPod"),
    ],
)
def test_a_start_that_fails_says_why_and_ends_at_the_deadline(
    definitions_1_6: list[Json], kind: str, reason: str
) -> None:
    with simulated(definitions_1_6, Plan(start=Start(kind))) as cluster:
        cluster.server.create(ray_job(activeDeadlineSeconds=60, backoffLimit=1))
        cluster.after(70)
        assert status(cluster)["reason"] == "DeadlineExceeded"
        assert status(cluster)["jobDeploymentStatus"] == "Failed"
        said = {event["reason"] for event in cluster.server.store.of(("", "events"))}
        assert reason in said


def test_a_worker_killed_for_memory_says_so(definitions_1_6: list[Json]) -> None:
    with simulated(definitions_1_6, Plan([Submission(worker_oom_s=5)])) as cluster:
        cluster.server.create(ray_job())
        cluster.after(20)
        states_of = [
            pod["status"]["containerStatuses"][0]["lastState"]
            for pod in cluster.server.store.of(("", "pods"))
        ]
        assert [s["terminated"]["reason"] for s in states_of if s] == ["OOMKilled"]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"deletionStrategy": RULES, "shutdownAfterJobFinishes": True}, "mutually exclusive"),
        ({"suspend": True}, "not allowed to be suspended"),
        ({"ttlSecondsAfterFinished": 5}, "cannot have TTLSecondsAfterFinished"),
    ],
)
def test_what_the_operator_does_not_take_fails_its_validation(
    definitions_1_6: list[Json], spec: Json, why: str
) -> None:
    with simulated(definitions_1_6) as cluster:
        cluster.server.create(ray_job(**spec))
        cluster.after(1)
        assert status(cluster)["jobDeploymentStatus"] == "ValidationFailed"
        assert why in status(cluster)["message"]


def test_a_deleted_job_goes_with_all_it_owns_however_slowly(definitions_1_6: list[Json]) -> None:
    with simulated(definitions_1_6, Plan(slow_delete_s=20)) as cluster:
        cluster.server.create(ray_job())
        cluster.after(15)
        cluster.server.store.delete(("ray.io", "rayjobs"), "default", "job", "Foreground")
        cluster.after(10)
        assert "RayJob/job" in cluster.server.objects()
        assert len(cluster.kuberay.pods()) == 3
        cluster.after(45)
        assert cluster.server.objects() == []


def ray_service(word: str, image: str = "example.com/ray:1") -> Json:
    pod = {"spec": {"containers": [{"name": "ray", "image": image}]}}
    app = f"applications: [{{name: scorer, route_prefix: /scorer, args: {{word: {word}}}}}]"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "both", "namespace": "default"},
        "spec": {
            "serveConfigV2": app,
            "rayClusterConfig": {
                "headGroupSpec": {"rayStartParams": {}, "template": pod},
                "workerGroupSpecs": [
                    {"groupName": "w", "replicas": 1, "rayStartParams": {}, "template": pod}
                ],
            },
        },
    }


def test_a_service_is_updated_in_place_or_by_a_second_cluster(definitions_1_6: list[Json]) -> None:
    key = ("ray.io", "rayservices")
    with simulated(definitions_1_6) as cluster:
        store = cluster.server.store

        def active() -> Json:
            return store.get(key, "default", "both")["status"]["activeServiceStatus"]

        def conditions() -> dict[str, str]:
            found = store.get(key, "default", "both")["status"]["conditions"]
            return {one["type"]: one["status"] for one in found}

        cluster.server.create(ray_service("one"))
        cluster.after(30)
        first = active()["rayClusterName"]
        assert conditions() == {"Ready": "True", "UpgradeInProgress": "False"}
        assert active()["applicationStatuses"]["scorer"]["status"] == "RUNNING"

        config = ray_service("two")["spec"]["serveConfigV2"]
        store.edit(key, "default", "both", lambda one: one["spec"].update(serveConfigV2=config))
        # Ready stays true while the application is deployed anew.
        cluster.until(
            lambda: active()["applicationStatuses"]["scorer"]["status"] == "DEPLOYING", 10
        )
        assert conditions()["Ready"] == "True"
        cluster.after(10)
        assert active()["applicationStatuses"]["scorer"]["status"] == "RUNNING"
        assert active()["rayClusterName"] == first

        def newer(one: Json) -> None:
            head = one["spec"]["rayClusterConfig"]["headGroupSpec"]
            head["template"]["spec"]["containers"][0]["image"] = "example.com/ray:2"

        store.edit(key, "default", "both", newer)
        cluster.after(4)
        assert conditions() == {"Ready": "True", "UpgradeInProgress": "True"}
        assert len(cluster.server.objects("RayCluster")) == 2
        cluster.after(30)
        assert active()["rayClusterName"] != first
        cluster.after(70)
        assert cluster.server.objects("RayCluster") == [f"RayCluster/{active()['rayClusterName']}"]
        service = store.get(("", "services"), "default", "both-serve-svc")
        assert service["spec"]["selector"]["ray.io/cluster"] == active()["rayClusterName"]
