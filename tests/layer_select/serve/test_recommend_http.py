"""The recommender's contract over a real socket: deployed, asked, replaced, and as a process."""

import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from bundles import OPTIONS, seal
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from layer_select.cli import main
from layer_select.export.bundle import Bundle
from layer_select.serve.app import build
from layer_select.serve.openapi import openapi
from layer_select.serve.run import deploy
from rayrun.config import ConfigError
from rayrun.metrics import Result
from rayrun.ray.compute import LocalCompute
from rayrun.ray.serve import deploy as deploy_application
from rayrun.ray.serve import deployment_options, serving

ROOT = Path(__file__).parents[3]
BESIDE = OPTIONS.model_copy(update={"route_prefix": "/recommender", "max_body_bytes": 20_000})
TIGHT = BESIDE.model_copy(
    update={
        "route_prefix": "/tight",
        "max_ongoing_requests": 1,
        "max_queued_requests": 1,
        "token_env": "LAYER_SELECT_TEST_TOKEN",
    }
)


def ask(url, path="/recommend", body=None, method=None, **headers):
    host, _, prefix = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=60)
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    method = method or ("GET" if raw is None else "POST")
    connection.request(method, (f"/{prefix}" if prefix else "") + path, body=raw, headers=headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    is_json = response.headers["content-type"] == "application/json"
    return response.status, json.loads(content) if is_json else content


def assert_is_sample(said, bundle):
    status, answer = said
    assert status == 200, answer
    assert answer["model"] == bundle.digest
    stored = bundle.sample["answer"]
    assert [one["item"] for one in answer["items"]] == [one["item"] for one in stored]
    for ours, theirs in zip(answer["items"], stored, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)


@pytest.mark.ray
def test_a_deployed_bundle_answers_refuses_and_is_not_replaced_by_a_broken_one(
    served_bundle, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setenv("LAYER_SELECT_TEST_TOKEN", "a token of this test")
    bundle = Bundle.read(str(served_bundle))
    places = tiny_config.inputs.model_copy(update={"bundle": str(served_bundle)})
    config = tiny_config.model_copy(update={"serve": BESIDE, "inputs": places})
    sample = bundle.sample["request"]
    broken = tmp_path / "broken"
    shutil.copytree(served_bundle, broken)
    changed = json.loads((broken / "sample.json").read_bytes())
    changed["answer"][0]["score"] += 1
    (broken / "sample.json").write_text(json.dumps(changed))
    seal(broken, {})
    compute = LocalCompute(num_cpus=2, object_store_bytes=200_000_000)
    with serving(compute, BESIDE):
        result = deploy(config, str(tmp_path / "out"))
        assert Result.read(str(tmp_path / "out")) == result
        url = result.details["url"]
        assert url.endswith("/recommender")
        assert ask(url, "/healthz") == (200, {"ready": True, "model": bundle.digest})
        assert_is_sample(ask(url, body=sample), bundle)

        with concurrent.futures.ThreadPoolExecutor(24) as clients:  # each its own answer
            asked = [
                {"history": list(bundle.items[n : n + 1 + n % 7]), "k": 1 + n % 5}
                for n in range(48)
            ]
            together = list(clients.map(lambda one: ask(url, body=one), asked))
        for one, (status, answer) in zip(asked[::7], together[::7], strict=True):
            assert status == 200
            _, alone = ask(url, body=one)
            assert [i["item"] for i in answer["items"]] == [i["item"] for i in alone["items"]]
            for ours, theirs in zip(answer["items"], alone["items"], strict=True):
                assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5, abs=1e-5)

        for body, status, path in (
            ({"history": [], "k": 1}, 422, "history"),
            ({"history": ["nobody's"], "k": 1}, 422, "history[0]"),
            ({**sample, "k": 0}, 422, "k"),
            ({**sample, "k": 10**6}, 422, "k"),
            ({**sample, "history": [3]}, 422, "history[0]"),
            (b"{", 422, ""),
            (b" " * 20_001, 413, ""),
        ):
            found, answer = ask(url, body=body)
            assert (found, answer["error"]["path"]) == (status, path)
        assert ask(url, "/other")[0] == 404
        assert ask(url, method="GET")[0] == 405
        assert ask(url, "/docs")[0] == 200
        assert ask(url, "/openapi.json")[1] == openapi(bundle, BESIDE)

        with pytest.raises(ConfigError, match="does not reproduce its own sample.*goes on"):
            deploy_application(build(BESIDE, str(broken)), name="recommender", options=BESIDE)
        assert_is_sample(ask(url, body=sample), bundle)

        tight = deploy_application(build(TIGHT, str(served_bundle)), name="tight", options=TIGHT)
        status, answer = ask(tight, body=sample)
        assert status == 401
        assert "Authorization: Bearer TOKEN" in answer["error"]["message"]
        bearer = {"authorization": "Bearer a token of this test"}
        assert_is_sample(ask(tight, body=sample, **bearer), bundle)
        with concurrent.futures.ThreadPoolExecutor(24) as clients:
            statuses = {
                status
                for status, _ in clients.map(lambda _: ask(tight, body=sample, **bearer), range(96))
            }
        assert statuses == {200, 503}


@pytest.mark.ray
def test_a_server_prints_where_it_answers_and_ends_when_it_is_told_to(
    served_bundle, tiny_config, tmp_path
):
    scratch = tempfile.mkdtemp(prefix="r", dir="/tmp")  # names of sockets end at 107 bytes
    words = ["serve.port=0", "compute.num_cpus=2", "serve.cpus_per_replica=0.5"]
    sets = [word for one in words for word in ("--set", one)]
    command = [sys.executable, "-m", "layer_select.cli", "serve", str(served_bundle), *sets]
    child = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": scratch},
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("READY http://127.0.0.1:"), child.communicate()[1]
        bundle = Bundle.read(str(served_bundle))
        assert_is_sample(ask(line.split()[1], body=bundle.sample["request"]), bundle)
        os.kill(child.pid, signal.SIGTERM)
        said, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    assert (child.returncode, err) == (0, "")
    assert "serve: told to stop" in said


# ---------------------------------------------------------------------------------------------
# Without Ray


def test_a_replica_asks_ray_for_the_gpus_that_it_is_given():
    assert deployment_options(OPTIONS)["ray_actor_options"] == {"num_cpus": 0.5}
    assert deployment_options(OPTIONS, 1)["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 1}


def test_the_document_is_valid_and_its_examples_fit_their_schemas(served_bundle):
    bundle = Bundle.read(str(served_bundle))
    document = openapi(bundle, TIGHT)
    validate(document)
    post = document["paths"]["/recommend"]["post"]
    assert post["responses"].keys() == {"200", "401", "413", "422", "503"}
    contents = [post["requestBody"]["content"], post["responses"]["200"]["content"]]
    for content in contents:
        schema = {**content["application/json"]["schema"], "components": document["components"]}
        Draft202012Validator(schema).validate(content["application/json"]["example"])


def test_a_dry_run_says_what_would_be_served(served_bundle, capsys, tmp_path):
    words = ["serve", str(served_bundle), "--set", "serve.port=0", "--out", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"model: {Bundle.read(str(served_bundle)).digest}" in said
    assert "address: http://127.0.0.1:(any free port)/recommend" in said


def test_what_cannot_be_served_is_refused_before_anything_starts(served_bundle, capsys, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(served_bundle, damaged)
    weights = damaged / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for verb, place, message in (
        ("serve", damaged, "model.safetensors is damaged: its SHA-256 is not the manifest's"),
        ("deploy", served_bundle, "or use `layer-select serve`, which stays"),
    ):
        assert main([verb, str(place), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert "READY" not in said.out
