"""The scorer as a file of Ray Serve declares it: what a RayService of the chart asks for."""

import json
import time
import urllib.request

import pytest

from infnet.config import ScorerServe
from infnet.serve.application import build
from infnet.serve.bundle import Bundle
from rayrun.config import ConfigError
from rayrun.ray.compute import LocalCompute
from rayrun.ray.serve import serving


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, r"(?s)args is not a valid Arguments:.*bundle"),
        ({"bundel": "x"}, "bundel"),
        ({"bundle": "/nowhere"}, r"args\.bundle \(/nowhere\): there is no bundle; name the output"),
        ({"route_prefix": "scorer"}, "it must begin with / and not end with one"),
        ({"set": {"serve.replicas": 0}}, "serve.replicas"),
        ({"set": "{serve.replicsa: 1}"}, "serve.replicsa"),
        ({"set": "{"}, r"args\.set"),
        ({"set": {"serve": {}}}, r"args\.set: name one key of serve"),
        ({"set": {"serve.port": 1}}, r"serve\.port is said by http_options\.port of the file"),
        ({"set": {"serve.live": "x"}}, r"args\.set: serve\.live is said by the verb `deploy`"),
        ({"set": {"compute.type": "local"}}, r"compute\.type is said by the cluster"),
        ({"model": "sha256:0"}, r"args\.model must be the digest of the bundle .*found sha256:0"),
    ],
)
def test_arguments_that_cannot_be_served_are_refused(exported, args, message):
    known = {} if not args or "bundel" in args else {"bundle": str(exported)}
    with pytest.raises(ConfigError, match=message):
        build(known | args)


def test_another_programs_artifact_is_refused(trained_run):
    with pytest.raises(ConfigError, match=r"must be a bundle of infnet \(kind 'infnet.bundle'\)"):
        build({"bundle": str(trained_run)})


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data, timeout=30) as response:
        return json.load(response)


@pytest.mark.ray
def test_a_declared_application_answers_its_sample_and_takes_new_arguments_in_place(
    exported, closed_port
):
    """By the call that the dashboard makes for a RayService."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    bundle = Bundle.open(str(exported))
    options = ScorerServe(port=closed_port, ingress="python")

    def declare(model):
        application = {
            "name": "scorer",
            "import_path": "infnet.serve.application:build",
            "route_prefix": "/scorer",
            "args": {
                "bundle": str(exported),
                "model": model,
                "route_prefix": "/scorer",
                "set": {"serve.cpus_per_replica": 0.5},
            },
            "deployments": [
                {
                    "name": "Scorer",
                    "num_replicas": "auto",
                    "autoscaling_config": {"min_replicas": 1, "max_replicas": 2},
                }
            ],
        }
        _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]))

    def wait_for(*status):
        until = time.monotonic() + 120
        while (found := serve.status().applications["scorer"]).status not in status:
            assert time.monotonic() < until, found
            time.sleep(0.1)
        return found

    with serving(LocalCompute(num_cpus=2, object_store_bytes=200_000_000), options):
        serve.start(http_options={"host": "127.0.0.1", "port": closed_port})
        declare(bundle.digest)
        wait_for("RUNNING")
        url = f"http://127.0.0.1:{closed_port}/scorer"
        assert ask(f"{url}/healthz") == {"ready": True, "model": bundle.digest}
        said = ask(f"{url}/score", bundle.sample["request"])
        assert said["model"] == bundle.digest
        for ours, theirs in zip(said["predictions"], bundle.sample["answer"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)

        declare("sha256:of-another-model")
        failed = wait_for("DEPLOY_FAILED")
        assert "args.model must be the digest of the bundle" in failed.message
        assert ask(f"{url}/healthz")["model"] == bundle.digest  # what was live goes on answering
