"""How jobs end, what is kept of those that fail, and whose they are. Simulated."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayrun.kube import owner
from tests.kube.fake_plan import Submission
from tests.kube.launching import Launched, asked, launched
from tests.kube.schedules import MortalClock, leave_result
from tests.kube.simulated import Simulated, simulated

Json = Any
JOBS = ("ray.io", "rayjobs")


@pytest.fixture
def sim(
    definitions_1_7: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Simulated]:
    with simulated(definitions_1_7, place=str(tmp_path)) as found:
        monkeypatch.setenv("KUBECONFIG", str(found.server.kubeconfig(tmp_path / "kubeconfig")))
        yield found


def failing(cluster: Simulated, exit_code: int, **compute: Any) -> Launched:
    cluster.kuberay.plan.submissions = [Submission(outcome="FAILED", exit_code=exit_code)]
    return launched(asked(cluster, **compute), cluster.clock)


def test_what_is_known_of_a_job_that_failed_is_kept_beside_its_output(sim):
    done = failing(sim, 1, backoff_limit=1)
    assert done.code == 1
    assert "attempt 1 of 2 failed (exit code 1)" in done.said
    assert "starting again, on a new cluster (attempt 2)" in done.said
    (name,) = (place.name for place in Path(sim.place, "failure").iterdir())
    kept = Path(sim.place, "failure", name)
    assert f"error: the job {name} ended with exit code 1" in done.said
    assert done.shown[-1] in done.said, "the last lines of the log are in the error"
    assert str(kept) in done.said
    assert (kept / "job.log").read_text().splitlines()[-20:] == done.shown[-20:]
    assert json.loads((kept / "rayjob.json").read_text())["jobStatus"] == "FAILED"
    assert "Created RayCluster" in (kept / "events.txt").read_text()
    assert len(json.loads((kept / "pods.json").read_text())) == 2
    assert list((kept / "stderr").iterdir())


def test_an_image_without_python_is_bad_input(sim):
    done = failing(sim, 127, backoff_limit=0)
    assert done.code == 2
    assert "found no `python` in the image; set compute.image to one" in done.said


def test_an_output_that_the_job_does_not_share_is_bad_input(sim):
    wanted = asked(sim)
    sim.kuberay.plan.on_end = None
    done = launched(wanted, sim.clock)
    assert done.code == 2
    assert "must be a folder that the cluster reaches by the same path, or s3://" in done.said
    sim.after(60)
    assert sim.objects() == []


@pytest.mark.parametrize("how", ["deleted", "stopped"])
def test_a_job_that_somebody_ended_is_an_interrupt(sim, how):
    sim.kuberay.plan.submissions = [Submission(outcome="")]

    def end() -> None:
        (job,) = sim.jobs()
        if how == "deleted":
            sim.server.store.delete(JOBS, "default", job["metadata"]["name"])
        else:
            (head,) = sim.kuberay.clusters.heads.values()
            head.stop(job["status"]["jobId"])

    sim.clock.call_at(sim.clock.now() + 40, end)
    done = launched(asked(sim), sim.clock)
    assert done.code == 130, done.said
    assert f"was {'removed' if how == 'deleted' else 'stopped'}" in done.said
    sim.after(60)
    assert sim.objects() == []


def test_a_job_that_succeeded_while_nobody_looked_is_not_run_again(sim):
    wanted = asked(sim)
    assert launched(wanted, MortalClock(sim.clock, 25)).code is None
    sim.until(lambda: sim.jobs()[0]["status"].get("jobStatus") == "SUCCEEDED")
    sim.after(10)
    done = launched(wanted, sim.clock)
    assert done.code == 0
    assert "has succeeded" in done.said
    assert done.found is not None
    assert done.found.result is not None
    assert done.shown == [], "its log is not shown again"
    sim.after(60)
    assert sim.objects() == []


def test_its_result_outlives_it(sim):
    wanted = asked(sim, ttl_s=60)
    assert launched(wanted, MortalClock(sim.clock, 25)).code is None
    sim.until(lambda: not sim.jobs(), 2000)
    sim.after(60)
    done = launched(wanted, sim.clock)
    assert done.code == 0
    assert "has succeeded" in done.said
    assert sim.objects() == [], "nothing was made"


def test_after_a_job_that_failed_the_next_attempt_goes_on(sim):
    sim.kuberay.plan.submissions = [Submission(outcome="FAILED"), Submission()]
    wanted = asked(sim, backoff_limit=0)
    assert launched(wanted, MortalClock(sim.clock, 25)).code is None
    sim.until(lambda: sim.jobs()[0]["status"].get("jobDeploymentStatus") == "Failed")
    done = launched(wanted, sim.clock)
    assert done.code == 0, done.said
    first = done.said.split("job ", 1)[1].split(" ", 1)[0]
    assert f"job {first} failed; attempt 2 is made" in done.said
    assert f"job {first}-2 in default: running" in done.said
    sim.after(60)
    assert sim.objects() == []


def test_time_in_a_queue_counts_to_no_deadline(sim):
    sim.kuberay.plan.queued_s = 5000
    done = launched(asked(sim, queue="team", start_deadline_s=60, deadline_s=300), sim.clock)
    assert done.code == 0, done.said
    assert "waiting in the queue team" in done.said


def step_pod(cluster: Simulated) -> tuple[Json, Json]:
    """The pod of a step, and the workflow that controls it."""
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "workflow"}}
    workflow = cluster.server.create(made)  # any object can be a controller
    meta = workflow["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "workflow", "uid": meta["uid"]}
    pod = cluster.server.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "step",
                "ownerReferences": [{**reference, "controller": True, "blockOwnerDeletion": True}],
            },
            "spec": {"containers": [{"name": "main", "image": "x"}]},
        }
    )
    return pod, workflow


def test_the_job_ends_with_the_workflow_of_the_step_that_made_it(sim, tmp_path, monkeypatch):
    sim.kuberay.plan.submissions = [Submission(outcome="")]
    pod, workflow = step_pod(sim)
    (tmp_path / "namespace").write_text("default")
    monkeypatch.setattr(owner, "ACCOUNT", tmp_path)
    monkeypatch.setattr(owner, "in_cluster", lambda: True)
    monkeypatch.setenv("KFP_POD_NAME", "step")
    monkeypatch.setenv("KFP_POD_UID", "of another pod")
    wrong = launched(asked(sim), sim.clock)
    assert wrong.code == 2
    assert "KFP_POD_NAME must name the pod of this step in default, found step" in wrong.said
    monkeypatch.setenv("KFP_POD_UID", pod["metadata"]["uid"])
    assert launched(asked(sim), MortalClock(sim.clock, 20)).code is None
    (job,) = sim.jobs()
    assert job["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": "workflow",
            "uid": workflow["metadata"]["uid"],
            "controller": False,
            "blockOwnerDeletion": False,
        }
    ]
    sim.server.store.delete(("", "configmaps"), "default", "workflow")
    sim.after(120)
    assert sim.objects() == [], "the job, and the pod of the step"


def test_a_dashboard_that_wants_another_token_is_told_once_and_the_job_goes_on(sim, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    wanted = asked(sim)
    heads = sim.kuberay.clusters

    def locked() -> None:
        for head in heads.heads.values():
            head.token = "ours"
        sim.clock.call_at(sim.clock.now() + 1, locked)

    sim.clock.call_at(sim.clock.now() + 1, locked)
    done = launched(wanted, sim.clock)
    assert done.code == 0, done.said
    assert done.said.count("wants its token (403), the one that was sent is not it") == 1


def test_what_is_left_of_a_result_belongs_to_the_same_configuration(sim):
    wanted = asked(sim)
    sim.kuberay.plan.on_end = leave_result("sha256:another")
    assert launched(wanted, MortalClock(sim.clock, 25)).code is None
    sim.until(lambda: sim.jobs()[0]["status"].get("jobStatus") == "SUCCEEDED")
    done = launched(wanted, sim.clock)
    assert done.code == 0
    assert "succeeded, but its result is not there; attempt 2 is made" in done.said
