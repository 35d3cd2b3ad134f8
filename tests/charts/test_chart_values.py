"""values.yaml, its schema and README.md: one list of values, and every other one refused."""

import importlib.util
import json
import subprocess

import helm_python
import pytest
import rendering
import yaml
from rendering import BUNDLES, CHART, merged, render

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = (CHART / "values.yaml").read_text()

_spec = importlib.util.spec_from_file_location("readme", CHART.parent / "readme.py")
assert _spec is not None
assert _spec.loader is not None
readme = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme)

REFUSED = [
    ("topologi: shared", "topologi"),
    ("topology: both", "/topology"),
    ("production: 'yes'", "/production"),
    ("image: {tga: '1'}", "tga"),
    ("image: {tag: 'a b'}", "/image/tag"),
    ("image: {digest: latest}", "/image/digest"),
    ("image: {pullPolicy: always}", "/image/pullPolicy"),
    ("imagePullSecrets: [{name: x}]", "/imagePullSecrets/0"),
    ("rayVersion: 2.60", "/rayVersion"),
    ("kuberay: {version: '1.5'}", "/kuberay/version"),
    ("fullnameOverride: Shop", "/fullnameOverride"),
    ("commonLabels: {a: 'b c'}", "/commonLabels/a"),
    ("applications: {scorer: {replica: 2}}", "replica"),
    ("applications: {scorer: {replicas: 0}}", "/applications/scorer/replicas"),
    ("applications: {scorer: {program: ray}}", "/applications/scorer/program"),
    ("applications: {scorer: {routePrefix: scorer}}", "/applications/scorer/routePrefix"),
    ("applications: {scorer: {routePrefix: /a/}}", "/applications/scorer/routePrefix"),
    ("applications: {scorer: {model: abc}}", "/applications/scorer/model"),
    (
        "applications: {scorer: {set: {serve.replicas: 2}}}",
        "/applications/scorer/set/serve.replicas",
    ),
    ("applications: {scorer: {set: {serve: {}}}}", "/applications/scorer/set/serve"),
    ("applications: {scorer: {token: secret}}", "/applications/scorer/token"),
    ("applications: {My_App: {}}", "My_App"),
    ("serve: {port: 70000}", "/serve/port"),
    ("serve: {logLevel: warning}", "/serve/logLevel"),
    ("s3: {endpoint: 'minio:9000'}", "/s3/endpoint"),
    ("s3: {secretAccessKey: hunter2}", "secretAccessKey"),
    ("volumes: [{claim: c}]", "mountPath"),
    ("volumes: [{claim: c, mountPath: /tmp}]", "/volumes/0/mountPath"),
    ("env: [{name: 'A B'}]", "/env/0/name"),
    ("envFrom: [{secret: x}]", "secret"),
    ("head: {numCpus: 0.5}", "/head/numCpus"),
    ("head: {objectStoreBytes: 1000}", "/head/objectStoreBytes"),
    ("head: {rayStartParams: {num-cpus: '4'}}", "/head/rayStartParams/num-cpus"),
    ("head: {labels: {app.kubernetes.io/name: x}}", "/head/labels/app.kubernetes.io~1name"),
    ("workers: {serve: {shm: lots}}", "/workers/serve/shm"),
    ("workers: {serve: {resources: {limits: {memory: 3 Gi}}}}", "/resources/limits/memory"),
    ("workers: {serve: {resources: {limit: {}}}}", "limit"),
    ("autoscaling: {version: v3}", "/autoscaling/version"),
    ("upgradeStrategy: {type: Recreate}", "/upgradeStrategy/type"),
    ("gcsFaultTolerance: {backend: both}", "/gcsFaultTolerance/backend"),
    ("rbac: {launcher: {subjects: [{kind: Robot, name: x}]}}", "/rbac/launcher/subjects/0/kind"),
    ("podDisruptionBudget: {workers: '50%'}", "/podDisruptionBudget/workers"),
    ("networkPolicy: {clientNamespaces: gateway}", "/networkPolicy/clientNamespaces"),
    ("httpRoute: {parentRefs: [{gateway: x}]}", "/httpRoute/parentRefs/0"),
    ("monitoring: {prometheusRule: {errorShare: 2}}", "/monitoring/prometheusRule/errorShare"),
    ("monitoring: {podMonitor: {interval: 30}}", "/monitoring/podMonitor/interval"),
    ("tests: {deletePolicy: never}", "/tests/deletePolicy"),
]


@pytest.mark.parametrize(("text", "names"), REFUSED, ids=[text for text, _ in REFUSED])
def test_a_wrong_value_is_refused_by_name(text, names):
    with pytest.raises(helm_python.HelmValuesError) as refused:
        rendering.chart().validate_schema(merged(BUNDLES, yaml.safe_load(text)))
    assert names in str(refused.value)


def test_helm_3_refuses_what_helm_4_refuses(helm3, tmp_path):
    """By the same draft of JSON Schema; three of the kinds of mistake."""
    for text, names in (REFUSED[0], REFUSED[1], REFUSED[13]):
        (tmp_path / "values.yaml").write_text(json.dumps(merged(BUNDLES, yaml.safe_load(text))))
        words = ["template", "x", CHART, "-f", tmp_path / "values.yaml", "--kube-version", "1.34.0"]
        done = subprocess.run([helm3, *words], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert names.strip("/").replace("/", ".") in done.stderr


def test_an_unset_group_or_application_is_gone():
    gone = {"applications": {"recommender": None}}
    config = rendering.serve_config(render(merged(BUNDLES, gone)), "shop-infnet-ray")
    assert [app["name"] for app in config["applications"]] == ["scorer"]


def test_the_schema_knows_the_keys_of_the_values_and_no_more():
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"

    def resolve(schema):
        return SCHEMA["definitions"][schema["$ref"].split("/")[-1]] if "$ref" in schema else schema

    def compare(schema, value, path):
        schema = resolve(schema)
        if schema.get("additionalProperties") is False and "properties" in schema:
            assert set(value) == set(schema["properties"]), path
            for name, inner in schema["properties"].items():
                if isinstance(value[name], dict):
                    compare(inner, value[name], f"{path}.{name}")

    compare(SCHEMA, yaml.safe_load(VALUES), "")


def test_no_mapping_of_our_own_takes_unknown_keys():
    """Those that do are Kubernetes' own, or free by their nature."""
    free = {"affinity", "valueFrom", "set", "podSecurityContext", "containerSecurityContext"}
    free |= {"ipBlock", "namespaceSelector", "podSelector", "labels", "annotations", "requests"}
    free |= {"limits", "nodeSelector", "rayStartParams", "objects"}

    def walk(schema, name):
        if isinstance(schema, list):
            for inner in schema:
                walk(inner, name)
        elif isinstance(schema, dict):
            if schema.get("type") == "object" and name not in free:
                assert schema.get("additionalProperties") is False, name
            for key, inner in schema.items():
                if key == "properties":
                    for one, what in inner.items():
                        walk(what, one)
                elif key in ("items", "patternProperties"):
                    walk(list(inner.values()) if key == "patternProperties" else inner, name)

    walk(SCHEMA, "values")
    for name, schema in SCHEMA["definitions"].items():
        walk(schema, "labels" if name == "podLabels" else name)


def test_readme_is_written_from_the_values():
    assert readme.current(CHART) == (CHART / "README.md").read_text(), "python charts/readme.py"


def test_every_value_is_told_of():
    told = {key for key, _, _ in readme.rows(VALUES)}
    assert len(told) > 120
    assert {"topology", "workerDefaults.shm", "monitoring.prometheusRule.for"} <= told
    for _, _, comment in readme.rows(VALUES):
        assert comment[0].isupper() or comment[0] == "`"
        assert comment.endswith(".")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", "a has no comment"),
        ("# -- One.\n# -- Two.\na: 1\n", "line 2: two comments for one key"),
        ("# -- One.\n- a\n", "line 2: a comment must stand before a key"),
    ],
)
def test_a_value_without_its_comment_is_found(text, message):
    with pytest.raises(ValueError, match=message):
        readme.rows(text)


def test_a_readme_without_a_place_for_the_table_is_told(tmp_path):
    (tmp_path / "README.md").write_text("# chart\n")
    with pytest.raises(ValueError, match="must hold the lines"):
        readme.current(tmp_path)
