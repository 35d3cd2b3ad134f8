"""The command line with `compute: {type: kuberay}`: what needs no cluster."""

from pathlib import Path

import pytest

from infnet.cli import main
from infnet.config import InfnetConfig
from rayrun.config import ConfigError, load, parse_yaml
from rayrun.kube.permissions import VERBS, missing
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.serve_verbs import Service, plan
from rayrun.ray.session import session
from rayrun.step import run_step

SMOKE = str(Path(__file__).parents[3] / "configs/infnet/smoke.yaml")
KUBERAY = "compute={type: kuberay, image: 'registry.example.com/ours:1'}"


def test_a_dry_run_prints_the_manifest_and_needs_no_cluster(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    monkeypatch.setenv("INFNET_RUN", "nightly")
    call = ["train", SMOKE, "--set", KUBERAY, "--out", "s3://bucket/runs/train", "--dry-run"]
    assert main(call) == 0
    text, _, rest = capfd.readouterr().out.partition("\n\n\n")
    manifest = parse_yaml(text, where="the plan")
    assert manifest["kind"] == "RayJob"
    assert manifest["metadata"]["labels"]["infnet-ray/run"] == "nightly"
    assert rest == "train would write to s3://bucket/runs/train; nothing was done (--dry-run)\n"


def test_what_is_wrong_is_one_line_and_exit_code_2(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    assert main(["train", SMOKE, "--set", KUBERAY, "--out", "s3://bucket/runs/train"]) == 2
    assert capfd.readouterr().err.startswith("error: compute: {type: kuberay} needs a Kubernetes")
    assert main(["train", SMOKE, "--set", KUBERAY, "--out", str(tmp_path / "out")]) == 2
    assert capfd.readouterr().err.startswith("error: --out must be s3://… or lie on a volume")
    assert main(["train", SMOKE, "--set", f"{KUBERAY[:-1]}, queue: a, cleanup: rules}}"]) == 2
    assert "cleanup: rules and a queue exclude each other" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_key_sends_a_file_for_one_machine_to_kubernetes(capfd, monkeypatch):
    monkeypatch.setenv("INFNET_IMAGE", "registry.example.com/ours:1")
    call = ["train", SMOKE, "--set", "compute.type=kuberay", "--out", "s3://b/out", "--dry-run"]
    assert main(call) == 0
    said = capfd.readouterr()
    assert said.err == (
        "warning: compute.num_cpus means nothing with compute.type kuberay and is not used\n"
    )
    assert "num_cpus" not in said.out


def test_a_verb_that_runs_here_refuses_kubernetes():
    with (
        pytest.raises(ConfigError, match=r"runs verbs as jobs and deploys services; this one runs"),
        session(KubeRayCompute(type="kuberay")),
    ):
        pass


def test_every_permission_says_what_it_is_for():
    for resource, verbs in VERBS.items():
        for verb, why in verbs.items():
            said = missing(verb, resource, "team")
            assert why in said
            assert f"the verb {verb} on {resource}" in said
    assert "rbac.launcher.enabled=true" in missing("get", "pods", "team")


TELLS = """
import json, os, sys
record = next(word.partition("=")[2] for word in sys.argv if word.startswith("--record="))
json.dump({"uri": "", "key": "", "cached": False, "digest": ""}, open(record, "w"))
print("told", os.environ.get("INFNET_RUN"), os.environ.get("INFNET_STEP"))
"""


def test_a_step_tells_its_child_on_whose_behalf_it_runs(tmp_path, monkeypatch, capfd):
    (tmp_path / "toytells").mkdir()
    (tmp_path / "toytells" / "cli.py").write_text(TELLS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_step("toytells", "train", "x.yaml", step="scorer-train", run=f"{tmp_path}/runs/nightly")
    assert "told nightly scorer-train" in capfd.readouterr().out
    run_step("toytells", "train", "x.yaml")
    assert "told None None" in capfd.readouterr().out


def test_a_dry_run_of_a_deployment_prints_its_rayservice():
    sets = [KUBERAY, "inputs.bundle=s3://bucket/scorer/7", "serve.route_prefix=/scorer"]
    config = load(InfnetConfig, SMOKE, sets)
    service = Service(
        "infnet",
        name="scorer",
        route="/score",
        bundle=config.inputs.bundle,
        digest="sha256:7",
        app=lambda: None,
    )
    lines = plan(service, config, config.compute, config.serve)
    manifest = parse_yaml(lines[-1], where="the plan")
    assert manifest["kind"] == "RayService"
    (app,) = parse_yaml(manifest["spec"]["serveConfigV2"], where="")["applications"]
    assert app["args"]["bundle"] == "s3://bucket/scorer/7"
    template = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
    (container,) = template["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
    assert {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"} in container["env"]
