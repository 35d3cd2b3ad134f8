"""`python -m pipelines submit | schedule`: what KFP's real client sends, and what people are told."""

import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from pipelines import backend, watch
from pipelines.__main__ import main
from pipelines.compiled import compiled, tasks_of
from tests.pipelines.kfp_api import KfpApi, hang_up, page, slow, status

SMOKE = Path(__file__).parents[2] / "configs" / "infnet" / "smoke.yaml"
ASKED = ["recommender", "config=s3://b/c.yaml", "root=s3://b/r"]
VARIABLES = (
    *(backend.ENDPOINT, backend.UI, backend.TOKEN_PATH, "INFNET_IMAGE"),
    *("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOKEN", "right")
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.02)


@pytest.fixture
def api():
    with KfpApi(token="right") as found:
        yield found


def submit(api, *more, command="submit", token="TOKEN"):
    return main([command, *ASKED, "--host", api.url, "--token-env", token, *more])


# --- What is sent ----------------------------------------------------------------------------


def test_a_run_is_what_was_asked_for(capsys):
    with KfpApi(token="right", namespaces=("team-a",)) as api:
        code = submit(
            api, "serve_address=ray:6379", "--set", "train.epochs=2", "--set", "train.seed=1",
            "--namespace", "team-a", "--experiment", "weekly", "--run-name", "monday",
            "--pipeline-root", "s3://b/kfp", "--service-account", "runner",
        )  # fmt: skip
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert said.out == f"run: {api.url}/#/runs/details/run-1\n"
    assert {request.headers["authorization"] for request in api.requests} == {"Bearer right"}
    (looked,) = api.sent("GET", "/experiments")
    assert looked.query["namespace"] == "team-a"
    (experiment,) = api.sent("POST", "/experiments")
    assert experiment.body == {"display_name": "weekly", "namespace": "team-a"}
    (run,) = api.sent("POST", "/runs")
    spec = run.body.pop("pipeline_spec")
    assert run.body == {
        "experiment_id": "experiment-1",
        "display_name": "monday",
        "service_account": "runner",
        "runtime_config": {
            "pipeline_root": "s3://b/kfp",
            "parameters": {
                "config": "s3://b/c.yaml",
                "root": "s3://b/r",
                "serve_address": "ray:6379",
                "sets": ["train.epochs=2", "train.seed=1"],
            },
        },
    }
    assert spec == yaml.safe_load(compiled("recommender"))


def test_an_experiment_that_is_there_is_used_and_what_is_not_said_is_left_to_the_backend(api):
    assert submit(api) == submit(api) == 0
    assert len(api.sent("POST", "/experiments")) == 1
    first, second = api.sent("POST", "/runs")
    assert first.body["experiment_id"] == second.body["experiment_id"] == "experiment-1"
    assert api.experiments["experiment-1"]["display_name"] == "Default"
    assert set(first.body) == {"experiment_id", "display_name", "pipeline_spec", "runtime_config"}
    assert set(first.body["runtime_config"]) == {"parameters"}
    assert first.body["display_name"].startswith("recommender 20")


def test_a_configuration_on_this_machine_is_sent_as_its_text(api, capsys):
    assert submit(api, f"live={SMOKE}") == 0
    ours = [word if not word.startswith("config=") else f"config={SMOKE}" for word in ASKED]
    assert main(["submit", *ours, "--host", api.url, "--token-env", "TOKEN"]) == 0
    assert f"config: the text of {SMOKE} is sent" in capsys.readouterr().out
    first, second = (r.body["runtime_config"]["parameters"] for r in api.sent("POST", "/runs"))
    assert first["config"] == "s3://b/c.yaml"
    assert first["live"] == str(SMOKE)
    assert second["config"] == SMOKE.read_text()


def test_a_cache_key_is_one_of_each_task_and_knows_the_arguments_but_no_place(api):
    keys = []
    for more in ([], ["serve_address=a:1"], ["live=s3://b/live"]):
        assert submit(api, *more, "--cache-key", "week-7") == 0
        spec = api.sent("POST", "/runs")[-1].body["pipeline_spec"]
        found = {name: task.get("cachingOptions", {}) for name, task in tasks_of(spec).items()}
        for act in ("finish", "infnet-gate", "infnet-deploy"):
            assert found.pop(act) == {}
        assert all(one["enableCache"] for one in found.values())
        assert len({one["cacheKey"] for one in found.values()}) == len(found) == 4
        assert all(one["cacheKey"].startswith("week-7-") for one in found.values())
        keys.append(found)
    assert keys[0] == keys[1] != keys[2]


def test_a_mounted_token_is_read_again_for_every_request(api, tmp_path, monkeypatch):
    mounted = tmp_path / "token"
    mounted.write_text("right\n")
    monkeypatch.setenv(backend.TOKEN_PATH, str(mounted))
    api.states = ["RUNNING", "RUNNING", "SUCCEEDED"]

    def renew(handler):
        api.token = "renewed"
        mounted.write_text("renewed\n")
        hang_up(handler)

    api.watched = [None, renew]
    assert main(["submit", *ASKED, "--host", api.url, "--watch"]) == 0
    sent = [request.headers["authorization"] for request in api.requests]
    assert (sent[0], sent[-1]) == ("Bearer right", "Bearer renewed")


@pytest.mark.parametrize(
    ("when", "trigger"),
    [
        (["--cron", "0 0 4 * * *"], {"cron_schedule": {"cron": "0 0 4 * * *"}}),
        (["--interval", "3600"], {"periodic_schedule": {"interval_second": 3600}}),
    ],
)
def test_a_schedule_is_a_recurring_run(api, capsys, when, trigger):
    more = ["--experiment", "nightly", "--max-concurrency", "2", "--schedule-name", "night"]
    assert submit(api, *when, *more, "--service-account", "runner", command="schedule") == 0
    assert (
        capsys.readouterr().out == f"schedule: {api.url}/#/recurringrun/details/recurring-run-1\n"
    )
    (made,) = api.sent("POST", "/recurringruns")
    spec = made.body.pop("pipeline_spec")
    assert spec == yaml.safe_load(compiled("recommender"))
    made.body["trigger"].get("periodic_schedule", {}).update(
        interval_second=int(made.body["trigger"].get("periodic_schedule", {}).get("interval_second", 0))
    )  # fmt: skip
    assert made.body["trigger"] == trigger
    assert made.body["display_name"] == "night"
    assert made.body["mode"] == "ENABLE"
    assert made.body["no_catchup"] is True
    assert int(made.body["max_concurrency"]) == 2
    assert made.body["service_account"] == "runner"
    assert made.body["runtime_config"]["parameters"]["root"] == "s3://b/r"
    assert api.experiments["experiment-1"]["display_name"] == "nightly"


# --- A run that is watched -------------------------------------------------------------------


def test_a_watched_run_is_told_step_by_step_through_all_trouble(api, capsys):
    api.states = [
        ("PENDING", {"root": "RUNNING", "root-driver": "RUNNING"}),
        ("RUNNING", {"infnet-prepare-driver": "SUCCEEDED", "infnet-prepare": "RUNNING"}),
        ("RUNNING", {"infnet-prepare": "SUCCEEDED", "infnet-train": "RUNNING"}),
        ("SUCCEEDED", {"infnet-train": "SUCCEEDED", "finish": "SUCCEEDED"}),
    ]
    # A look that hangs up is one for us, KFP's client asks three times more by itself.
    api.watched = [None, *[hang_up] * 4, status(503, "upstream"), status(500, "Internal: db"), None]
    assert submit(api, "--watch") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("no answer (")
    assert lines[0].startswith("run: http")
    assert lines[2:] == [
        "answered again",
        "prepare: running",
        "prepare: succeeded",
        "train: running",
        "train: succeeded",
        "finish: succeeded",
        "run: succeeded",
    ]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_watched_run_that_fails_is_exit_code_1(api, capsys, state):
    api.states = ["RUNNING", (state, {"infnet-train": "FAILED"})]
    assert submit(api, "--watch") == 1
    said = capsys.readouterr()
    assert "train: failed" in said.out
    see = f"see {api.url}/#/runs/details/run-1"
    assert said.err == f"error: the run {state.lower()}: in train; {see}\n"


def test_a_backend_that_stays_away_is_given_up_and_the_run_is_not(api, capsys, monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE_S", 0.2)
    api.states = ["RUNNING"]
    api.watched = [status(502, "bad gateway")] * 1000
    assert submit(api, "--watch") == 1
    said = capsys.readouterr().err
    assert "has not answered for 0 s (502: bad gateway); the run goes on: http" in said


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (status(401, "expired"), "does not answer any more (401: expired), the token may have"),
        (status(404, "Run not found"), "the run run-1 is no more at "),
    ],
)
def test_a_watch_that_cannot_go_on_says_why(api, capsys, trouble, says):
    api.watched = [trouble] * 2  # a token may have been renewed between two looks
    assert submit(api, "--watch") == 2
    assert says in capsys.readouterr().err


# --- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["submit", "recomender"], "found 'recomender'; did you mean 'recommender'?"),
        (["submit", "recommender", "root=s3://b/r"], "the pipeline recommender needs config=…"),
        (["submit", *ASKED, "sets=3"], "sets must be a list in JSON"),
        (["submit", *ASKED, "rot=3"], "rot is no argument of the pipeline recommender"),
        (["submit", "recommender", "config=a", "root=runs/a"], "root must be a URI (s3://bucket/key)"),
        (["submit", *ASKED, "--token-env", "NOT_SET"], "--token-env NOT_SET: the environment variable"),
        (["submit", *ASKED, "--hst", "b"], "unrecognized arguments: --hst"),
        (["schedule", *ASKED], "one of the arguments --cron --interval is required"),
        (["schedule", *ASKED, "--cron", "0 4 * * *"], "--cron must have six fields"),
        (["schedule", *ASKED, "--cron", "@daily", "--max-concurrency", "0"], "--max-concurrency must be 1 to 10"),
        (["schedule", *ASKED, "--interval", "0"], "--interval must be at least 1 second, found 0"),
        (["schedule", *ASKED, "--interval", "soon"], "invalid int value: 'soon'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_sent(api, capsys, monkeypatch, arguments, says):
    monkeypatch.setenv(backend.ENDPOINT, api.url)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("error: ") == 1
    assert api.requests == []


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("", "--host must be the URL of a KFP API and is not given; in a pod of its cluster it is"),
        ("kfp.test", "--host must be http://… or https://…, found 'kfp.test'"),
        ("http://127.0.0.1:{port}", "nobody listens at --host http://127.0.0.1:{port} (Connection refused)"),
        ("http://no-such-host.invalid", "nobody listens at --host http://no-such-host.invalid ("),
    ],
)  # fmt: skip
def test_a_host_that_is_not_there_is_told_at_once(capsys, host, says):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    assert main(["submit", *ASKED, "--host", host.format(port=port)]) == 2
    assert time.monotonic() - began < 15
    said = capsys.readouterr().err
    assert says.format(port=port) in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ([page], "is no KFP API (its /apis/v2beta1/healthz is no JSON)"),
        ([status(404, "no such path")], "does not know it (no such path); check --host with its path"),
        ([status(500, "Internal Server Error: sql\ngithub.com/x\n")], "failed (500: Internal Server Error: sql)"),
        ([status(500, "Internal error: Unauthenticated: no identity")], "wants another token (500: "),
        ([status(400, "Invalid input error: a\nstack")], "refused it (400: Invalid input error: a)"),
        ([hang_up] * 8, "no answer of the KFP at "),
        ([slow(1.0)] * 8, "no answer of the KFP at "),
    ],
)  # fmt: skip
def test_what_a_server_says_is_one_line(api, capsys, monkeypatch, trouble, says):
    monkeypatch.setattr(backend, "READ_S", 0.3)
    api.trouble = list(trouble)
    assert submit(api) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert api.runs == {}


def test_a_wrong_token(api, capsys, monkeypatch):
    monkeypatch.setenv("OLD", "wrong")
    assert submit(api, token="OLD") == 2
    said = capsys.readouterr().err
    assert "wants another token (401: Unauthenticated: the token is not known)" in said
    assert "the token of OLD: check --token-env" in said
    assert "wrong" not in said
    assert main(["submit", *ASKED, "--host", api.url]) == 2
    assert "no token was given: check --token-env" in capsys.readouterr().err


def test_a_mounted_token_that_is_not_there(api, capsys, monkeypatch):
    monkeypatch.setenv(backend.TOKEN_PATH, "/nowhere/token")
    assert main(["submit", *ASKED, "--host", api.url]) == 2
    named = f"{backend.TOKEN_PATH} must name a file with a token, found /nowhere/token"
    assert named in capsys.readouterr().err


def test_a_namespace_of_somebody_else_and_an_experiment_that_is_two(capsys):
    with KfpApi(token="right", namespaces=("team-a",)) as api:
        assert submit(api, "--namespace", "team-b") == 2
        told = (
            "forbids it (PermissionDenied: not authorized in namespace 'team-b'); check --namespace"
        )
        assert told in capsys.readouterr().err
        for name in ("e-1", "e-2"):
            api.experiments[name] = {"display_name": "twice", "namespace": "team-a"}
        assert submit(api, "--namespace", "team-a", "--experiment", "twice") == 2
        told = "KFP's client refused it: Multiple experiments is found with name twice."
        assert told in capsys.readouterr().err
        assert api.runs == {}


def test_a_server_that_takes_a_run_and_names_none(api, capsys):
    api.add = lambda *_, **__: {}  # type: ignore[method-assign]
    api.experiments["e"] = {"display_name": "Default", "experiment_id": "e"}
    assert submit(api) == 2
    assert "took the run and gave it no name" in capsys.readouterr().err


def test_certificates_that_are_not_known_are_told():
    error = backend.kfp_server_api.ApiException(status=0, reason="SSLError\nself-signed")
    told = backend._told(backend.Address(host="https://kfp.test"), error)
    assert (
        told
        == "the KFP at https://kfp.test is not trusted (SSLError); give its certificates by --ca-file"
    )


def test_json_is_what_the_stand_in_wants():
    """The stand-in refuses what a backend would: otherwise these tests could not fail."""
    with KfpApi() as api:
        refused = [
            ({"display_name": "a", "nmespace": "b"}, "/experiments", 400),
            ({"experiment_id": "x", "pipeline_spec": {}}, "/runs", 404),
        ]
        for body, path, code in refused:
            request = urllib.request.Request(
                f"{api.url}/apis/v2beta1{path}", json.dumps(body).encode(), method="POST"
            )
            with pytest.raises(urllib.error.HTTPError, match=str(code)):
                urllib.request.urlopen(request, timeout=5)
