"""Verbs as jobs in Kubernetes: the same on the simulated cluster and, with `-m kube`, on a real one."""

import json
from typing import Any

import pytest

from rayrun import storage
from rayrun.kube.clean import remove_run
from rayrun.metrics import Result
from tests.kube.fake_plan import Submission
from tests.kube.launching import InterruptingClock, asked, launched
from tests.kube.schedules import MortalClock, check_lines

Json = Any
GONE_S = 60.0


def leaves_nothing(cluster: Any, wanted: Any) -> None:
    cluster.until(lambda: cluster.objects() == [], GONE_S)
    assert not storage.exists(storage.join(wanted.folder, "config.yaml"))


def test_a_verb_runs_its_log_is_shown_and_nothing_is_left(cluster):
    wanted = asked(cluster)
    done = launched(wanted, cluster.clock)
    assert done.code == 0, done.said
    assert done.found is not None
    assert done.found.record["exit_code"] == 0
    assert Result.read(wanted.place).config_digest == wanted.config.digest()
    assert "starting" in done.said
    assert "running on ir-prepare-" in done.said
    if not cluster.real:
        assert check_lines(cluster, done.shown) == []
        assert len(done.shown) == 20
    leaves_nothing(cluster, wanted)


@pytest.mark.parametrize("looks", [3, 25])
def test_a_launcher_that_died_is_followed_by_the_next_one(cluster, looks):
    wanted = asked(cluster)
    if cluster.real:
        looks *= 3
    assert launched(wanted, MortalClock(cluster.clock, looks)).code is None
    (job,) = cluster.jobs() or [None]
    if job is not None and storage.exists(place := f"{wanted.folder}/launch.json"):
        told = json.loads(storage.read_bytes(place))
        assert (told["name"], told["uid"]) == (job["metadata"]["name"], job["metadata"]["uid"])
        assert (told["namespace"], told["attempt"]) == (cluster.namespace, 1)
    done = launched(wanted, cluster.clock)
    assert done.code == 0, done.said
    if job is not None:
        assert f"following the job {job['metadata']['name']}" in done.said
    leaves_nothing(cluster, wanted)


@pytest.mark.parametrize("looks", [2, 12, 40])
def test_an_interrupt_removes_the_job_and_waits_until_it_is_gone(cluster, looks):
    wanted = asked(cluster)
    if not cluster.real:
        cluster.kuberay.plan.submissions = [Submission(outcome="")]
    done = launched(wanted, InterruptingClock(cluster.clock, looks))
    assert done.code == 130, done.said
    assert cluster.objects() == [] or looks == 2, done.said
    leaves_nothing(cluster, wanted)


def test_the_exit_handler_removes_what_a_killed_step_has_left(cluster, monkeypatch):
    monkeypatch.setenv("INFNET_RUN", "nightly 17")
    monkeypatch.setenv("INFNET_STEP", "prepare")
    wanted = asked(cluster)
    assert launched(wanted, MortalClock(cluster.clock, 12)).code is None
    (job,) = cluster.jobs()
    assert remove_run("another", clock=cluster.clock) == []
    assert len(cluster.jobs()) == 1
    notes = remove_run("nightly 17", clock=cluster.clock)
    assert notes == [
        f"The job `{job['metadata']['name']}` of this run, which was still there, was removed."
    ]
    assert cluster.objects() == []
    monkeypatch.delenv("KUBECONFIG")
    assert remove_run("nightly 17") == [], "no cluster is configured"


def test_bad_input_in_the_job_is_bad_input_here_and_is_not_tried_again(cluster):
    sets = (f"inputs.checkpoint={cluster.place}/nowhere",)
    wanted = asked(cluster, "export", sets)
    if not cluster.real:
        cluster.kuberay.plan.submissions = [Submission(lines=2, outcome="FAILED", exit_code=2)]
    done = launched(wanted, cluster.clock)
    assert done.code == 2, done.said
    assert "ended with exit code 2" in done.said
    assert not cluster.real or "error: " in done.said
    leaves_nothing(cluster, wanted)


def test_a_lost_head_is_replaced_and_what_it_never_served_is_one_line(cluster):
    if cluster.real:
        pytest.skip("this job is over before its head can be killed; others train longer")
    wanted = asked(cluster)
    cluster.kuberay.plan.submissions = [Submission(head_lost_s=8.4), Submission()]
    done = launched(wanted, cluster.clock)
    lost = [line for line in done.shown if line.startswith("(")]
    assert lost == ["(the rest of what attempt 1 printed was lost with its head)"]
    assert check_lines(cluster, done.shown) == []
    assert done.code == 0, done.said
    leaves_nothing(cluster, wanted)


def test_an_image_that_cannot_be_pulled_is_told_and_kept_with_its_events(cluster):
    if not cluster.real:
        cluster.kuberay.plan.start.kind = "image"
    wanted = asked(cluster, image="registry.invalid/ours:none")
    done = launched(wanted, cluster.clock)
    assert done.code == 2
    assert "error: the image registry.invalid/ours:none cannot be pulled for the pod " in done.said
    assert "correct compute.image" in done.said
    kept = f"{cluster.place}/failure/{wanted_name(done.said)}"
    assert b"compute.image_pull_secrets" in storage.read_bytes(f"{kept}/summary.txt")
    assert storage.exists(f"{kept}/events.txt")
    leaves_nothing(cluster, wanted)


def wanted_name(said: str) -> str:
    """Of the job, from what was said of it."""
    return said.split("job ", 1)[1].split(" ", 1)[0]
