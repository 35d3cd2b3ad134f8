"""Ray pods and permissions: what never changes them, what they may do, what they are given."""

import re

import pytest
import yaml
from rendering import (
    BUNDLES,
    CHART,
    EVERYTHING,
    chart,
    clusters,
    merged,
    of_kind,
    one,
    pod_templates,
    preset,
    render,
    serve_config,
)

from rayrun.kube.permissions import VALUE, VERBS

UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
LAUNCHER = "shop-infnet-ray-launcher"


def bytes_of(quantity):
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity).groups()
    return int(number) * UNITS[unit]


@pytest.mark.parametrize(
    "text",
    [
        "monitoring: {podMonitor: {enabled: true, interval: 5s}, serviceMonitor: {enabled: true}, prometheusRule: {enabled: true, errorShare: 0.5}, dashboards: {enabled: true}}",
        "commonLabels: {team: b}",
        "commonAnnotations: {owner: b}",
        "networkPolicy: {enabled: true}",
        "podDisruptionBudget: {enabled: true}",
        "ingress: {enabled: true, host: a.example.com}",
        "httpRoute: {enabled: true, parentRefs: [{name: g}]}",
        "tests: {enabled: false}",
        "rbac: {launcher: {enabled: false}}",
        "upgradeStrategy: {deletionDelaySeconds: 5}",
        "serve: {logLevel: INFO, accessLog: true, service: {type: NodePort}}",
        "applications: {scorer: {bundle: s3://b/8, replicas: 2, cpusPerReplica: 0.25, set: {serve.batch_wait_ms: 1}}}",
        "applications: {recommender: null}",
        "cluster: {enabled: true}",
        "kueue: {queue: q}",
    ],
)
def test_a_change_beside_the_pods_starts_no_second_cluster(text):
    """KubeRay compares the specification of the cluster; the service's alone is changed in place."""
    before, after = (clusters(render(v))["shop-infnet-ray"] for v in (preset("laptop"), preset("laptop", yaml.safe_load(text))))  # fmt: skip
    assert before == after


def compared(spec):
    """What KubeRay 1.6.1 compares (GenerateHashWithoutReplicasAndWorkersToDelete)."""
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        for name in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(name, None)
        group["template"]["spec"].pop("tolerations", None)
    return spec


@pytest.mark.parametrize(
    "text",
    [
        "image: {tag: '2'}",
        "env: [{name: A, value: b}]",
        "serve: {port: 8001}",
        "workers: {serve: {replicas: 3}}",
        "head: {tolerations: [{operator: Exists}]}",
        "workers: {serve: {tolerations: [{operator: Exists}]}}",
    ],
)
def test_a_change_of_the_pods_is_seen_by_kuberay(text):
    values = preset("laptop"), preset("laptop", yaml.safe_load(text))
    before, after = (compared(clusters(render(v))["shop-infnet-ray"]) for v in values)
    assert before != after


def test_a_change_of_the_bounds_of_autoscaling_is_seen_too():
    on = {"autoscaling": {"enabled": True}}
    more = {"workers": {"serve": {"maxReplicas": 5}}}
    values = preset("laptop", on), preset("laptop", on, more)
    before, after = (compared(clusters(render(v))["shop-infnet-ray"]) for v in values)
    assert before != after


def test_a_new_version_of_the_chart_starts_no_second_cluster(tmp_path):
    import shutil

    import helm_python

    shutil.copytree(CHART, tmp_path / "chart")
    text = (CHART / "Chart.yaml").read_text()
    (tmp_path / "chart" / "Chart.yaml").write_text(
        re.sub(r"(?m)^version: .*$", "version: 9.9.9", text)
    )
    with helm_python.Chart.load(tmp_path / "chart") as newer:
        made = newer.render(preset("laptop"), name="shop", namespace="ml")
    text = made["infnet-ray/templates/rayservice.yaml"]
    assert "9.9.9" in text
    (service,) = [thing for thing in yaml.safe_load_all(text) if thing]
    assert service["spec"] == one(render(preset("laptop")), "RayService")["spec"]
    assert chart().version != "9.9.9"


SETS = {"laptop": preset("laptop"), "gpu": preset("gpu"), "production": preset("production"), "everything": merged(BUNDLES, EVERYTHING)}  # fmt: skip


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_every_pod_is_restricted_and_holds_no_token(values):
    objects = render(values)
    pods = [*pod_templates(objects).values(), *of_kind(objects, "Pod").values()]
    assert len(pods) >= 4
    for pod in pods:
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"].startswith("shop-infnet-ray")
        assert spec["serviceAccountName"] != LAUNCHER
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            assert mounts["/tmp"] == "tmp"
            assert "autoscaler-token" not in mounts.values()
            assert {"name": "HOME", "value": "/tmp"} in container["env"]
            memory = {container["resources"][side]["memory"] for side in ("requests", "limits")}
            assert len(memory) == 1
        assert not any("hostPath" in volume for volume in spec["volumes"])


def test_only_the_autoscaler_is_given_a_token():
    spec = clusters(render(merged(BUNDLES, EVERYTHING)))["shop-infnet-ray"]
    head = spec["headGroupSpec"]["template"]["spec"]
    assert head["serviceAccountName"] == "shop-infnet-ray-autoscaler"
    mounts = {m["mountPath"] for m in spec["autoscalerOptions"]["volumeMounts"]}
    assert "/var/run/secrets/kubernetes.io/serviceaccount" in mounts
    assert {m["name"] for m in spec["autoscalerOptions"]["volumeMounts"]} <= {
        v["name"] for v in head["volumes"]
    }
    assert spec["autoscalerOptions"]["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_laptop_holds_an_upgrade_of_its_pods():
    """Old and new cluster beside each other, on a node of 20 Gi and 2 CPUs."""
    spec = clusters(render(preset("laptop")))["shop-infnet-ray"]
    pods = {"requests": 0, "cpu": 0}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert bytes_of(resources["limits"]["memory"]) <= 3 * 2**30
        count = group.get("replicas", 1)
        pods["requests"] += count * bytes_of(resources["requests"]["memory"])
        pods["cpu"] += count * int(resources["requests"]["cpu"].removesuffix("m"))
    assert 2 * pods["requests"] <= 20 * 2**30
    assert 2 * pods["cpu"] <= 1500
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["rayStartParams"]["num-cpus"].isdigit()
        shm = next(
            v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"
        )
        assert shm["medium"] == "Memory"
        assert bytes_of(shm["sizeLimit"]) > int(group["rayStartParams"]["object-store-memory"])


def test_heads_run_no_replica_and_stop_ray_before_they_end():
    for values in SETS.values():
        for spec in clusters(render(values)).values():
            assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for template in pod_templates(render(values)).values():
            command = template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert command[-1] == "ray stop"


def test_labels_of_pods_leave_kuberay_its_own():
    """Its services select the head by `app.kubernetes.io/name: kuberay`."""
    for values in SETS.values():
        for template in pod_templates(render(values)).values():
            labels = template["metadata"]["labels"]
            assert not {"app.kubernetes.io/name", "app.kubernetes.io/created-by"} & set(labels)
            assert not any(name.startswith(("helm.sh/", "infnet-ray/run")) for name in labels)


def test_serving_is_out_of_reach_of_a_run():
    """A run is cleaned up by its label; what Helm manages is told by who manages it."""
    for service in of_kind(render(merged(BUNDLES, EVERYTHING)), "RayService").values():
        labels = service["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert "infnet-ray/run" not in labels
        assert "ownerReferences" not in service["metadata"]


def test_the_role_of_launchers_is_what_the_launcher_asks_for():
    granted = {}
    for rule in of_kind(render(preset("laptop")), "Role")[LAUNCHER]["rules"]:
        (group,) = rule["apiGroups"]
        for resource in rule["resources"]:
            granted[f"{resource}.{group}" if group else resource] = sorted(rule["verbs"])
    assert granted == {resource: sorted(verbs) for resource, verbs in VERBS.items()}


def test_the_message_of_a_403_names_values_that_are_there():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in VALUE.split("."):
        values = values[name]
    assert {"enabled", "subjects"} <= set(values)


def test_launchers_are_bound_and_nobody_else():
    binding = of_kind(render(merged(BUNDLES, EVERYTHING)), "RoleBinding")[LAUNCHER]
    assert binding["roleRef"]["name"] == LAUNCHER
    assert [(s["kind"], s["name"], s.get("namespace")) for s in binding["subjects"]] == [
        ("ServiceAccount", LAUNCHER, "ml"),
        ("ServiceAccount", "pipeline-runner", "kubeflow"),
        ("User", "anna", None),
    ]
    assert (
        of_kind(render(preset("laptop", {"rbac": {"launcher": {"enabled": False}}})), "Role") == {}
    )


def test_secrets_are_named_and_never_made():
    objects = render(merged(BUNDLES, EVERYTHING))
    assert of_kind(objects, "Secret") == {}
    spec = clusters(objects)["shop-infnet-ray"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    env = {e["name"]: e for e in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    for name, secret in (
        ("AWS_ACCESS_KEY_ID", "s3"),
        ("AWS_SECRET_ACCESS_KEY", "s3"),
        ("SCORER_TOKEN", "callers"),
    ):
        assert env[name]["valueFrom"]["secretKeyRef"]["name"] == secret
    (scorer,) = [
        a for a in serve_config(objects, "shop-infnet-ray")["applications"] if a["name"] == "scorer"
    ]
    assert scorer["args"]["set"]["serve.token_env"] == "SCORER_TOKEN"


def test_tests_are_hooks_that_leave_nothing_and_ask_what_is_served():
    objects = render(preset("laptop"))
    pods = of_kind(objects, "Pod")
    assert len(pods) == 2
    for pod in pods.values():
        annotations = pod["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "test"
        assert "before-hook-creation" in annotations["helm.sh/hook-delete-policy"]
        assert "hook-succeeded" in annotations["helm.sh/hook-delete-policy"]
        container = pod["spec"]["containers"][0]
        assert container["command"] == ["python", "-m", "rayrun.ray.ask_sample"]
        assert container["args"][0].startswith("http://shop-infnet-ray-serve-svc.ml.svc:8000/")


def test_budgets_are_numbers_of_pods_that_a_selector_finds():
    objects = render(merged(BUNDLES, EVERYTHING))
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert sorted(budgets) == ["shop-infnet-ray-head", "shop-infnet-ray-worker"]
    for name, budget in budgets.items():
        assert type(budget["spec"]["minAvailable"]) is int
        wanted = dict(budget["spec"]["selector"]["matchLabels"])
        assert wanted.pop("ray.io/node-type") == name.rpartition("-")[2]  # KubeRay's own label
        labels = pod_templates(objects)["shop-infnet-ray", "head"]["metadata"]["labels"]
        assert wanted.items() <= labels.items()
