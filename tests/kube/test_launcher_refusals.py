"""What can be wrong with a cluster, with our rights on it, and with what is asked of it: one clear
error each, and nothing left. Simulated only: a real cluster is not broken for a test.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayrun.config import ConfigError
from rayrun.kube.api import PATIENCE_S, Api
from rayrun.kube.connection import Connection
from rayrun.kube.permissions import VERBS
from rayrun.kube.trouble import Watched
from rayrun.ray.compute import KubeRayCompute
from tests.kube.api_faults import Fault
from tests.kube.fake_plan import Plan, Start, Submission
from tests.kube.launching import EVERYTHING, Launched, asked, launched
from tests.kube.simulated import Simulated, simulated

Json = Any
FOREVER = float("inf")


@pytest.fixture
def sim(
    definitions_1_6: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Simulated]:
    with simulated(definitions_1_6, place=str(tmp_path)) as found:
        use(found, tmp_path, monkeypatch)
        yield found


def use(
    cluster: Simulated, folder: Path, monkeypatch: pytest.MonkeyPatch, rules: Json = None
) -> None:
    token = cluster.server.token("launcher", EVERYTHING if rules is None else rules)
    monkeypatch.setenv(
        "KUBECONFIG", str(cluster.server.kubeconfig(folder / "kubeconfig", token=token))
    )


def errors(done: Launched) -> str:
    """The one error of a call."""
    assert done.said.count("error: ") == 1, done.said
    return done.said.split("error: ", 1)[1]


def refused(cluster: Simulated, *words: str, **compute: Any) -> Launched:
    """A call that ends with one error that has these words, and leaves nothing."""
    wanted = asked(cluster, **compute)
    done = launched(wanted, cluster.clock)
    assert done.code == 2, done.said
    for word in words:
        assert word in errors(done)
    cluster.after(60)
    assert cluster.objects() == []
    assert not Path(wanted.folder).exists()
    return done


# ---------------------------------------------------------------------------------------------
# Permissions

USED = {
    "fails": [("rayjobs.ray.io", verb) for verb in ("create", "get", "list", "watch")],
    "warns": [
        ("rayjobs.ray.io", "delete"),
        ("pods", "list"),
        ("pods/log", "get"),
        ("events", "list"),
        ("services/proxy", "get"),
    ],
}


def rules_without(resource: str, verb: str) -> list[Json]:
    """All that a launcher needs, but one verb."""
    rules: list[Json] = []
    for name, verbs in VERBS.items():
        plural, _, sub = name.partition("/")
        plural, _, group = plural.partition(".")
        left = [one for one in verbs if (name, one) != (resource, verb)]
        full = f"{plural}/{sub}" if sub else plural
        rules.append({"apiGroups": [group], "resources": [full], "verbs": left})
    return rules


@pytest.mark.parametrize(("resource", "verb"), USED["fails"])
def test_without_a_verb_that_it_needs_the_launcher_names_it_and_the_chart_value(
    sim, resource, verb, tmp_path, monkeypatch
):
    use(sim, tmp_path, monkeypatch, rules_without(resource, verb))
    kind = resource.partition(".")[0]
    why = VERBS[resource][verb]
    refused(
        sim,
        f"this account may not {verb} {resource} in the namespace default",
        f"needed to {why}",
        "rbac.launcher.enabled=true",
        f'cannot {verb} resource "{kind}" in API group',
    )


@pytest.mark.parametrize(("resource", "verb"), USED["warns"])
def test_without_a_verb_that_only_shows_more_the_job_goes_on(
    sim, resource, verb, tmp_path, monkeypatch
):
    use(sim, tmp_path, monkeypatch, rules_without(resource, verb))
    if resource == "events":
        sim.kuberay.plan.start = Start("quota", until_s=30)
    elif resource == "pods/log":
        sim.kuberay.plan.submissions = [Submission(outcome="FAILED"), Submission()]
    done = launched(asked(sim), sim.clock)
    assert done.code == 0, done.said
    assert done.said.count(f"this account may not {verb} {resource}") >= 1
    sim.after(2000)
    assert sim.objects() == [], "KubeRay removes what we may not"


def test_the_launcher_asks_for_nothing_more_than_it_says(sim, tmp_path, monkeypatch):
    use(sim, tmp_path, monkeypatch, rules_without("", ""))
    sim.kuberay.plan.submissions = [Submission(outcome="FAILED"), Submission()]
    assert launched(asked(sim), sim.clock).code == 0
    assert sim.server.access.refused == []


# ---------------------------------------------------------------------------------------------
# What Kubernetes and KubeRay refuse


def test_a_quota_on_jobs_is_told_at_once(sim):
    text = (
        'rayjobs.ray.io "ir-prepare-1" is forbidden: exceeded quota: team, requested: '
        "count/rayjobs.ray.io=1, used: count/rayjobs.ray.io=5, limited: count/rayjobs.ray.io=5"
    )
    answering(sim, "POST", "rayjobs", 403, "Forbidden", text)
    refused(sim, "ResourceQuota does not let the RayJob ir-prepare-", "limited: count/", "raise it")


def test_a_quota_on_pods_is_told_with_what_it_leaves(sim):
    sim.kuberay.plan.start = Start("quota", role="worker")
    refused(sim, "the namespace's ResourceQuota leaves no room: pods ", "lower compute.workers")


def test_a_webhook_that_denies_is_quoted(sim):
    text = 'admission webhook "policy.example.com" denied the request: no owner label'
    answering(sim, "POST", "rayjobs", 400, "BadRequest", text)
    refused(sim, "an admission webhook of the cluster refuses the RayJob", "no owner label")


def test_what_kubernetes_does_not_take_is_quoted_with_its_path(sim):
    text = 'RayJob.ray.io "x" is invalid: spec.rayClusterSpec.rayVersion: Invalid value: "integer"'
    answering(sim, "POST", "rayjobs", 422, "Invalid", text)
    refused(sim, "Kubernetes does not take the RayJob", "spec.rayClusterSpec.rayVersion: Invalid")
    sim.server.faults.rules.clear()
    answering(sim, "POST", "rayjobs", 405, "MethodNotAllowed", "not here")
    refused(sim, "Kubernetes refuses the RayJob", "(405): not here")


def test_a_kuberay_older_than_a_field_is_told_with_how_to_do_without(
    definitions_1_6, tmp_path, monkeypatch
):
    older = copy.deepcopy(definitions_1_6)
    for definition in older:
        if definition["spec"]["names"]["plural"] == "rayjobs":
            for version in definition["spec"]["versions"]:
                spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
                spec.pop("preRunningDeadlineSeconds", None)
    with simulated(older, place=str(tmp_path)) as cluster:
        use(cluster, tmp_path, monkeypatch)
        refused(
            cluster,
            "is older than fields that are set (spec.preRunningDeadlineSeconds)",
            "--set compute.start_deadline_s=null",
        )
        assert launched(asked(cluster, start_deadline_s=None), cluster.clock).code == 0


def test_without_kuberay_it_says_how_to_install_it(tmp_path, monkeypatch):
    with simulated([], place=str(tmp_path)) as cluster:
        use(cluster, tmp_path, monkeypatch)
        refused(
            cluster, "KubeRay is not installed on this cluster", "helm install kuberay-operator"
        )


def test_a_namespace_that_is_not_there_is_told(sim):
    refused(sim, "compute.namespace must be one that is there, found nowhere", namespace="nowhere")


def test_what_kuberay_itself_refuses_is_quoted(sim):
    sim.server.routes.writes.admit.append(
        lambda resource, thing: (
            thing["spec"].update(shutdownAfterJobFinishes=True)
            if resource.key == ("ray.io", "rayjobs")
            else None
        )
    )
    refused(sim, "(ValidationFailed): The RayJob spec is invalid", "mutually exclusive")


# ---------------------------------------------------------------------------------------------
# Pods that do not start


@pytest.mark.parametrize(
    ("waiting", "words"),
    [
        (
            {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'},
            "there is no Secret s3; create it, or correct the name",
        ),
        (
            {
                "reason": "CreateContainerConfigError",
                "message": "container has runAsNonRoot and image will run as root",
            },
            "its image must have a numeric USER that is not 0",
        ),
    ],
)
def test_a_container_that_cannot_be_made_is_told_with_its_remedy(sim, waiting, words):
    set_on_pods(sim, {"containerStatuses": [{"name": "ray-head", "state": {"waiting": waiting}}]})
    refused(sim, "the pod ir-prepare-", words)


def test_a_claim_that_is_not_there_is_told(sim):
    text = '0/1 nodes are available: persistentvolumeclaim "shared" not found.'
    condition = {"type": "PodScheduled", "status": "False", "message": text}
    set_on_pods(sim, {"conditions": [condition]})
    refused(sim, "there is no claim shared; create it, or correct compute.volumes")


def test_pods_that_never_find_room_end_with_the_deadline_of_the_start(sim):
    sim.kuberay.plan.start = Start("unschedulable")
    done = refused(
        sim, "were not ready within compute.start_deadline_s", start_deadline_s=60, backoff_limit=0
    )
    assert "waiting: no node has room for the pod" in done.said


def test_a_job_that_runs_too_long_names_the_key(sim):
    sim.kuberay.plan.submissions = [Submission(outcome="")]
    refused(sim, "(DeadlineExceeded)", "compute.deadline_s was reached", deadline_s=60)


def test_a_memory_limit_that_is_reached_is_told_with_pod_and_limit(sim):
    fate = Submission(lines=30, worker_oom_s=5, outcome="FAILED", exit_code=137)
    sim.kuberay.plan.submissions = [fate]
    done = launched(asked(sim, backoff_limit=0), sim.clock)
    assert done.code == 137
    assert "reached its memory limit of 3Gi and was killed; raise compute.memory_per_worker" in (
        errors(done)
    )


def test_a_worker_that_rays_own_monitor_ends_is_told_with_its_pod(sim):
    api = Api(clock=sim.clock)
    watched = Watched(api, KubeRayCompute(type="kuberay"))
    pod = {"metadata": {"name": "job-worker-1"}, "status": {"podIP": "10.244.0.7"}}
    watched.look([pod])
    said = (
        "(raylet) Memory on the node (IP: 10.244.0.7, ID: 5a) was 2.86GB used / 3.00GB limit (0.9"
    )
    for line in (said, said, "Memory on the node is fine"):
        watched.hear(line)
    assert watched.killed == {
        "job-worker-1": "Ray ended a worker of the pod job-worker-1, which used 2.86 of its 3.00 GB; "
        "raise compute.memory_per_worker"
    }


# ---------------------------------------------------------------------------------------------
# The API away, and tokens


def test_an_api_that_is_gone_for_two_minutes_is_survived(sim):
    sim.kuberay.plan.submissions = [Submission(lines=200)]
    begin = sim.clock.now()
    sim.server.faults.outage(begin + 30, begin + 150)
    done = launched(asked(sim), sim.clock)
    assert done.code == 0, done.said
    assert len(done.shown) == 200


def test_an_api_that_stays_away_ends_the_command_and_not_the_job(sim):
    sim.kuberay.plan.submissions = [Submission(lines=80, every_s=10)]
    begin = sim.clock.now()
    sim.server.faults.outage(begin + 30, begin + 1000)
    done = launched(wanted := asked(sim), sim.clock)
    assert done.code == 2
    assert f"gave no answer for {PATIENCE_S:g} s" in errors(done)
    assert "run the same command again to follow it" in errors(done)
    assert PATIENCE_S >= 300
    sim.server.faults.rules.clear()
    again = launched(wanted, sim.clock)
    assert "following the job ir-prepare-" in again.said
    assert (again.code, len(again.shown)) == (0, 80)


def test_an_api_that_never_answered_is_told_sooner(sim):
    begin = sim.clock.now()
    sim.server.faults.outage(begin, begin + 10_000)
    done = launched(asked(sim), sim.clock)
    assert done.code == 2
    assert "does not answer" in errors(done)
    assert "correct the kubeconfig's context" in errors(done)
    assert "waiting for it …" in done.said
    assert 180 <= sim.clock.now() - begin < 200


def test_a_token_that_expires_is_read_again(sim, tmp_path, monkeypatch):
    sim.kuberay.plan.submissions = [Submission(lines=60)]

    def renew() -> None:
        sim.server.access.tokens.clear()
        use(sim, tmp_path, monkeypatch)

    sim.clock.call_at(sim.clock.now() + 30, renew)
    done = launched(asked(sim), sim.clock)
    assert (done.code, len(done.shown)) == (0, 60), done.said


def test_a_token_that_nobody_renews_is_told(sim):
    sim.kuberay.plan.submissions = [Submission(outcome="")]
    sim.clock.call_at(sim.clock.now() + 30, sim.server.access.tokens.clear)
    done = launched(asked(sim), sim.clock)
    assert done.code == 2
    assert "refuses our token (401 Unauthorized)" in errors(done)
    assert "log in again" in errors(done)


def test_without_a_cluster_or_with_another_context_it_says_what_is_needed(
    sim, tmp_path, monkeypatch
):
    with pytest.raises(ConfigError, match=r"context must be one of the kubeconfig's \(stub\)"):
        Connection.open("production")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="needs a Kubernetes API: run in a pod .* KUBECONFIG"):
        Api()


def test_a_token_for_ray_is_needed_here_too(sim, monkeypatch, tmp_path):
    # A Ray that another test opened in this process leaves the mode and the user's own token.
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(sim, "compute.token_secret (t) needs the token here too", token_secret="t")


# ---------------------------------------------------------------------------------------------


def answering(
    cluster: Simulated, method: str, path: str, code: int, reason: str, text: str
) -> None:
    """The next requests of a kind are answered with a Status."""
    from tests.kube import api_faults
    from tests.kube.api_answers import ApiError

    faults, before = cluster.server.faults, cluster.server.faults.before

    def answer(asked_method: str, asked_path: str) -> bool:
        rule = Fault(code, method, path)
        if rule.hits_now(asked_method, asked_path, cluster.clock.now()):
            raise ApiError(code, text, reason=reason)
        return before(asked_method, asked_path)

    assert api_faults.Faults is type(faults)
    faults.before = answer  # type: ignore[method-assign]


def set_on_pods(cluster: Simulated, status: Json) -> None:
    """Pods stay pending, with this status."""
    cluster.kuberay.kubelet._start = lambda pod: cluster.server.set_status(  # type: ignore[method-assign]
        "v1/pods", "default", pod["metadata"]["name"], {"phase": "Pending", **status}
    )
    assert isinstance(cluster.kuberay.plan, Plan)
