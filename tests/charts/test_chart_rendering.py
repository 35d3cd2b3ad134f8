"""Every preset and topology through real Helm 4 and Helm 3."""

import json
import os
import subprocess

import helm_python
import pytest
import rendering
import yaml
from rendering import BUNDLES, CHART, EVERYTHING, PRESETS, merged, one, preset, render

SETS = {
    **{f"{name}-{topology}": preset(name, {"topology": topology}) for name in PRESETS for topology in ("shared", "split")},
    "everything": merged(BUNDLES, EVERYTHING),
}  # fmt: skip
GOLDEN = rendering.ROOT / "tests" / "golden" / "chart_laptop.yaml"


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_strict_lint_finds_nothing(values):
    report = helm_python.lint(
        CHART, values, strict=True, namespace="ml", kube_version=f"v{rendering.KUBE_VERSION}"
    )
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


def test_the_values_as_they_are_lint_without_a_bundle():
    """Whoever downloads the chart lints it before they have models."""
    assert helm_python.lint(CHART, strict=True)["errors"] == []


@pytest.mark.parametrize("name", ["laptop-shared", "production-split", "everything"])
def test_helm_3_makes_the_same_objects(helm3, name, tmp_path):
    (tmp_path / "values.yaml").write_text(json.dumps(SETS[name]))
    given = ["--values", str(tmp_path / "values.yaml"), "--namespace", rendering.NAMESPACE]
    linted = subprocess.run(
        [helm3, "lint", "--strict", CHART, *given], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
    made = subprocess.run(
        [
            helm3,
            "template",
            rendering.RELEASE,
            CHART,
            *given,
            "--kube-version",
            rendering.KUBE_VERSION,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    theirs = [thing for thing in yaml.load_all(made.stdout, yaml.CSafeLoader) if thing]
    assert sorted(map(key, theirs)) == sorted(map(key, render(SETS[name])))
    ours = {key(thing): thing for thing in render(SETS[name])}
    for thing in theirs:
        assert thing == ours[key(thing)]


def key(thing):
    return thing["kind"], thing["metadata"]["name"]


def test_the_golden_laptop_preset_is_as_it_was():
    """Say in the commit why a Ray pod changes: every user's does, in a second cluster."""
    made = yaml.safe_dump_all(render(preset("laptop")), sort_keys=True)
    if os.environ.get("GOLDEN_WRITE"):
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text(), "make golden"


def test_shared_is_one_service_split_is_one_for_each_application():
    shared = rendering.of_kind(render(preset("laptop")), "RayService")
    assert list(shared) == ["shop-infnet-ray"]
    split = rendering.of_kind(render(preset("laptop", {"topology": "split"})), "RayService")
    assert sorted(split) == ["shop-infnet-ray-recommender", "shop-infnet-ray-scorer"]


def test_a_change_of_one_application_leaves_the_service_of_the_other_as_it_is():
    before = preset("laptop", {"topology": "split"})
    after = merged(
        before, {"applications": {"scorer": {"image": {"tag": "2"}, "bundle": "s3://n"}}}
    )
    ours, theirs = (rendering.of_kind(render(v), "RayService") for v in (before, after))
    name = "shop-infnet-ray-recommender"
    assert ours.pop(name) == theirs.pop(name)
    assert ours != theirs


def test_the_serve_configuration_is_what_ray_serve_and_our_builders_take():
    from ray.serve.schema import ServeDeploySchema

    from rayrun.config import validate
    from rayrun.ray.declared import Arguments

    for values in (merged(BUNDLES, EVERYTHING), preset("gpu")):
        config = rendering.serve_config(render(values), "shop-infnet-ray")
        read = ServeDeploySchema.model_validate(config)
        assert {app.name: app.route_prefix for app in read.applications} == {
            "scorer": "/scorer",
            "recommender": "/recommender",
        }
        for app in config["applications"]:
            arguments = validate(Arguments, app["args"], where="args")
            assert arguments.route_prefix == app["route_prefix"]
            module = app["import_path"].split(".")[0]
            source = (rendering.ROOT / module / "serve" / "app.py").read_text()
            for deployment in app.get("deployments", []):
                assert f"class {deployment['name']}(Endpoint)" in source


def test_every_set_key_of_the_chart_is_one_of_the_configurations():
    """What the chart sets by itself, as the builder reads it from a bundle's configuration."""
    from infnet.config import ScorerServe
    from layer_select.serve.config import RecommenderServe

    known = {"scorer": ScorerServe, "recommender": RecommenderServe}
    for values in (merged(BUNDLES, EVERYTHING), preset("gpu")):
        for app in rendering.serve_config(render(values), "shop-infnet-ray")["applications"]:
            for name in app["args"]["set"]:
                assert name.removeprefix("serve.") in known[app["name"]].model_fields


def test_notes_name_the_urls_and_the_next_commands():
    (notes,) = [t for n, t in rendering.texts(preset("laptop")).items() if n.endswith("NOTES.txt")]
    for line in (
        "http://shop-infnet-ray-serve-svc.ml.svc:8000/scorer/score",
        "http://shop-infnet-ray-serve-svc.ml.svc:8000/recommender/recommend",
        "helm test shop --namespace ml",
        "service/shop-infnet-ray-head-svc 8265",
        "shop-infnet-ray-launcher",
        "helm rollback shop",
    ):
        assert line in notes


def test_weights_share_a_prefix_out_to_two_services():
    values = preset(
        "laptop",
        {
            "topology": "split",
            "applications": {
                "scorer": {"weight": 90},
                "canary": {"bundle": "s3://b/8", "routePrefix": "/scorer", "weight": 10},
            },
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
        },
    )
    rules = {
        rule["matches"][0]["path"]["value"]: {b["name"]: b["weight"] for b in rule["backendRefs"]}
        for rule in one(render(values), "HTTPRoute")["spec"]["rules"]
    }
    assert rules == {
        "/scorer": {
            "shop-infnet-ray-scorer-serve-svc": 90,
            "shop-infnet-ray-canary-serve-svc": 10,
        },
        "/recommender": {"shop-infnet-ray-recommender-serve-svc": 1},
    }


def test_names_stay_short_enough_for_kuberay_whatever_the_release_is_called():
    text = rendering.chart().render(
        preset("laptop", {"topology": "split"}), name="a" * 53, namespace="ml"
    )
    names = [
        thing["metadata"]["name"]
        for name, part in text.items()
        if name.endswith("rayservice.yaml")
        for thing in yaml.safe_load_all(part)
        if thing
    ]
    assert len(names) == 2
    assert all(len(name) <= 47 for name in names)


def test_extra_objects_are_templates():
    objects = render(merged(BUNDLES, EVERYTHING))
    assert "x-shop" in rendering.of_kind(objects, "ConfigMap")


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "infnet-ray:0.1.0"),
        ({"image": {"registry": "r:5000", "tag": "7"}}, "r:5000/infnet-ray:7"),
        ({"global": {"imageRegistry": "g"}, "image": {"registry": "r"}}, "g/infnet-ray:0.1.0"),
        ({"image": {"tag": "7", "digest": "sha256:" + "1" * 64}}, "infnet-ray@sha256:" + "1" * 64),
    ],
)
def test_the_image_is_named_by_registry_tag_or_digest(values, image):
    bundles = {"applications": BUNDLES["applications"]}
    templates = rendering.pod_templates(render(merged(bundles, values)))
    found = {c["image"] for t in templates.values() for c in t["spec"]["containers"]}
    assert found == {image}


def test_a_release_may_hold_permissions_alone():
    """Who launches jobs and serves elsewhere."""
    nothing = {"applications": {"scorer": None, "recommender": {"enabled": False}}}
    kinds = sorted(thing["kind"] for thing in render(merged(BUNDLES, nothing)))
    assert kinds == ["Role", "RoleBinding", "ServiceAccount"]


def test_large_numbers_stay_whole():
    """A template of Go prints a million as 1e+06."""
    million = {
        "applicationDefaults": {"set": {"serve.max_body_bytes": 16_777_216}},
        "head": {"terminationGracePeriodSeconds": 1_000_000, "objectStoreBytes": 4_000_000_000},
        "workerDefaults": {"terminationGracePeriodSeconds": 1_000_000},
        "upgradeStrategy": {"deletionDelaySeconds": 1_000_000},
    }
    objects = render(merged(BUNDLES, million))
    for template in rendering.pod_templates(objects).values():
        assert template["spec"]["terminationGracePeriodSeconds"] == 1_000_000
    service = one(objects, "RayService")["spec"]
    assert service["rayClusterDeletionDelaySeconds"] == 1_000_000
    head = service["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]
    assert head["object-store-memory"] == "4000000000"
    for app in rendering.serve_config(objects, "shop-infnet-ray")["applications"]:
        assert app["args"]["set"]["serve.max_body_bytes"] == 16_777_216
        assert isinstance(app["args"]["set"]["serve.max_body_bytes"], int)


def test_a_label_of_everybody_never_replaces_one_that_something_is_found_by():
    own = {"commonLabels": {"app.kubernetes.io/instance": "x", "grafana_dashboard": "x"}}
    objects = render(merged(BUNDLES, EVERYTHING, own))
    assert one(objects, "PodMonitor")["metadata"]["labels"]["app.kubernetes.io/instance"] == "shop"
    for name, found in rendering.of_kind(objects, "ConfigMap").items():
        if "dashboard" in name:
            assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
