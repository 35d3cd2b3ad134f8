"""The recommender as a file of Ray Serve declares it."""

import json
import urllib.request

import pytest

from layer_select.export.bundle import Bundle
from layer_select.serve.application import build
from layer_select.serve.config import RecommenderServe
from rayrun.config import ConfigError
from rayrun.ray.compute import LocalCompute
from rayrun.ray.serve import serving


def test_a_bundle_of_the_other_program_and_an_unknown_key_are_refused(served_bundle, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "infnet.bundle"}))
    with pytest.raises(ConfigError, match=r"must be a bundle of layer-select .* bundle of infnet"):
        build({"bundle": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"serve\.engin"):
        build({"bundle": str(served_bundle), "set": {"serve.engin.type": "vllm"}})


@pytest.mark.ray
def test_a_declared_recommender_answers_its_sample(served_bundle, closed_port):
    from ray import serve

    bundle = Bundle.read(str(served_bundle))
    options = RecommenderServe(port=closed_port, ingress="python")
    args = {
        "bundle": str(served_bundle),
        "model": bundle.digest,
        "route_prefix": "/recommender",
        "set": "{serve.cpus_per_replica: 0.5, serve.start_timeout_s: 120}",
    }
    with serving(LocalCompute(num_cpus=2, object_store_bytes=200_000_000), options):
        serve.start(http_options={"host": "127.0.0.1", "port": closed_port})
        serve.run(build(args), name="recommender", route_prefix="/recommender")
        body = json.dumps(bundle.sample["request"]).encode()
        url = f"http://127.0.0.1:{closed_port}/recommender/recommend"
        with urllib.request.urlopen(url, body, timeout=60) as response:
            said = json.load(response)
    assert said["model"] == bundle.digest
    stored = [one["item"] for one in bundle.sample["answer"]]
    assert [one["item"] for one in said["items"]] == stored
