"""Verbs as jobs of a real head with token authentication: `ray job submit`, and our own client."""

import json
import re
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from aiohttp import web
from answering_dashboard import Dashboard, says
from cutting_proxy import CuttingProxy
from token_head import BIN, ROOT, Client

from rayrun import manifest, storage
from rayrun.config import ConfigError, load, parse_yaml
from rayrun.metrics import Result
from rayrun.ray import submit
from rayrun.ray.compute import AttachedCompute
from rayrun.ray.job_client import Jobs
from rayrun.ray.job_log import follow
from rayrun.ray.session import session
from rayrun.verb import Ended
from tests.infnet.serve.conftest import at_run, exported, trained_run  # noqa: F401 - fixtures

SMOKE = "configs/infnet/smoke.yaml"
FEW = ["--set", "data.source.rows=300", "--set", "data.source.users=40"]

# ---------------------------------------------------------------------------------------------
# What is asked for


def asked(tmp_path: Path, **changes) -> submit.Request:
    from infnet.cli import VERBS
    from infnet.config import InfnetConfig

    given = {"verb": "prepare", "out": "", "kept": "", "flags": {}, "sets": []} | changes
    compute = "type: attached, address: 'http://head:8265', cpus_per_worker: 2, working_dir: ''"
    at = [f"compute={{{compute}}}", *given["sets"]]
    config = load(InfnetConfig, ROOT / SMOKE, at)
    verb = next(v for v in VERBS if v.name == given["verb"])
    out = given["out"] or str(tmp_path / "out")
    return submit.request("infnet", verb, config, given["flags"], out=out, kept=given["kept"])


def test_the_job_reads_the_same_configuration_with_the_cluster_it_runs_in(tmp_path):
    told = parse_yaml(submit.plan(asked(tmp_path)), where="the plan")
    here = asked(tmp_path).config.to_dict()
    assert told.pop("compute") == AttachedCompute(address="auto", cpus_per_worker=2).to_dict()
    assert here.pop("compute")["address"] == "http://head:8265"
    assert told == here


def test_the_id_of_a_job_follows_from_what_is_asked_for_and_not_from_where(tmp_path, monkeypatch):
    name = asked(tmp_path).name
    assert re.fullmatch(r"infnet-prepare-[0-9a-f]{12}", name)
    assert (
        asked(tmp_path, sets=["compute.cpus_per_worker=1", "compute.address=http://b:1"]).name
        == name
    )
    others = [
        asked(tmp_path, out=str(tmp_path / "other")),
        asked(tmp_path, sets=["inputs.data=elsewhere"]),
        asked(tmp_path, sets=["train.epochs=3"]),
        asked(tmp_path, verb="train"),
        asked(tmp_path, kept=str(tmp_path / "out")),
    ]
    assert len({name, *(other.name for other in others)}) == 6
    monkeypatch.chdir(tmp_path)
    assert asked(tmp_path, out="out").name == name, "a relative place means what it means here"
    assert asked(tmp_path).folder == f"{tmp_path}/.{name}"
    assert asked(tmp_path, kept="s3://bucket/store").folder.startswith("s3://bucket/store/.infnet")


def test_places_among_the_flags_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"split": "test", "data": "rows.csv"}
    assert asked(tmp_path, verb="evaluate", flags=flags).flags == {
        "split": "test",
        "data": str(tmp_path / "rows.csv"),
    }


def test_attempts_are_numbered():
    assert [submit._attempt(f"infnet-train-0123456789ab{n}") for n in ("", "-2", "-10")] == [
        1,
        2,
        10,
    ]
    assert submit._attempt("infnet-train-012345678901") == 1, "a digest of decimal digits only"


def test_the_working_directory_is_the_checkout_or_what_is_given(tmp_path):
    assert submit._working_dir("auto") == str(ROOT)
    assert submit._working_dir("") == ""
    assert submit._working_dir("s3://bucket/sources.zip") == "s3://bucket/sources.zip"
    assert submit._working_dir(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ConfigError, match=r"compute\.working_dir must be a folder.*no folder /no"):
        submit._working_dir("/nowhere")


def ended(dashboard: Dashboard, tmp_path: Path, **info: object) -> submit.Submitted:
    """What comes of a job that ends like this, having written nothing that can be seen here."""
    known: list[dict[str, object]] = []

    async def jobs(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(known)
        name = (await request.json())["submission_id"]
        known.append({"submission_id": name, "status": info["status"]})
        dashboard.answers[f"/api/jobs/{name}"] = says(info)
        dashboard.answers[f"/api/jobs/{name}/logs"] = says({"logs": "all it said\n"})
        return web.json_response({"job_id": name, "submission_id": name})

    dashboard.answers["/api/jobs/"] = jobs
    try:
        return submit.run(asked(tmp_path, sets=[f"compute.address={dashboard.url}"]))
    finally:
        assert not list(tmp_path.iterdir())


def test_how_a_job_ended_is_how_the_command_ends(dashboard, tmp_path, capfd):
    failed = {"status": "FAILED", "driver_exit_code": None}
    with pytest.raises(Ended, match="exit code 1"):
        ended(dashboard, tmp_path, **failed, error_type="RUNTIME_ENV", message="no such image")
    assert "failed (RUNTIME_ENV): no such image" in capfd.readouterr().err
    with pytest.raises(Ended, match="exit code 137"):
        ended(dashboard, tmp_path, status="FAILED", driver_exit_code=-9)
    said = capfd.readouterr()
    assert said.out == "all it said\n"
    assert "ended with exit code 137\n--out (/" in said.err
    with pytest.raises(ConfigError, match=r"found no `python` on the cluster; .* PATH"):
        ended(dashboard, tmp_path, status="FAILED", driver_exit_code=127)
    with pytest.raises(ConfigError, match=r"--out .* must be a folder that the cluster reaches"):
        ended(dashboard, tmp_path, status="SUCCEEDED", driver_exit_code=0)
    with pytest.raises(KeyboardInterrupt):
        ended(dashboard, tmp_path, status="STOPPED")
    assert "was stopped" in capfd.readouterr().err


def test_a_working_directory_is_for_jobs_only():
    with pytest.raises(ValueError, match=r"working_dir is sent with a job, .* found auto; remove"):
        AttachedCompute(working_dir="")


def test_a_verb_that_runs_here_refuses_a_dashboard():
    with (
        pytest.raises(ConfigError, match=r"\(http://head:8265\) is a dashboard.* HOST:PORT"),
        session(AttachedCompute(address="http://head:8265")),
    ):
        pass


# ---------------------------------------------------------------------------------------------
# A real head


RAYS_OWN = "ray::(IDLE|DashboardAgent|RuntimeEnvAgent|JobSupervisor|_[A-Z][A-Za-z]+Actor)"
"""Processes of a cluster that does nothing; the last are what Ray Data leaves behind."""

PRINTS = """
import sys, time
for n in range(240):
    print(f"line {n // 2} of naïve text", flush=True)
    time.sleep(0.01)
print("the end", end="", flush=True)
"""


@pytest.mark.ray
def test_a_log_through_a_proxy_that_cuts_connections_is_the_jobs_own(head, tmp_path):
    (tmp_path / "prints.py").write_text(PRINTS)
    proxy = CuttingProxy(head.port, after_bytes=(1000, 3000, 2000, 20_000), after_s=1.5)
    jobs = Jobs(head.address)
    jobs.submit("prints", f"python {tmp_path / 'prints.py'}", {}, {})
    jobs.address = f"http://127.0.0.1:{proxy.port}"
    shown: list[str] = []
    info = follow(jobs, "prints", shown.append)
    proxy.close()
    assert info["status"] == "SUCCEEDED"
    (own,) = head.folder.rglob("job-driver-prints.log")
    assert shown == own.read_text(encoding="utf-8").split("\n")
    assert shown[-1] == "the end"
    assert proxy.cuts >= 3


@pytest.mark.ray
def test_a_wrong_token_is_refused(head, monkeypatch, tmp_path, capfd):
    from infnet.cli import main

    # A Ray that another test opened in this process leaves the mode and the user's own token.
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    at = f"compute={{type: attached, address: '{head.address}'}}"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    assert main(["prepare", str(ROOT / SMOKE), "--set", at]) == 2
    error = capfd.readouterr().err
    assert "the cluster wants its token (403), a token was sent, and is not the cluster's" in error
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    assert main(["prepare", str(ROOT / SMOKE), "--set", at]) == 2
    assert "the cluster wants its token (401), none is set; set RAY_AUTH_TOKEN" in (
        capfd.readouterr().err
    )


@pytest.mark.ray
def test_a_verb_is_submitted_found_again_stopped_and_finished(head, tmp_path):
    out, record = tmp_path / "out", tmp_path / "record.json"
    at = f"compute={{type: attached, address: '{head.address}'}}"
    call = ["prepare", SMOKE, *FEW, "--set", at, f"--out={out}", f"--record={record}"]

    first = Client(head, *call)
    first.until("Running entrypoint for job")
    first.process.kill()
    first.end()
    second = Client(head, *call)
    second.until("following the job infnet-prepare-")
    second.until("reading the log")  # Ray Data is at work
    second.process.send_signal(signal.SIGINT)
    assert second.end() == 130, second.said
    assert "stopping the job" in second.said
    assert "to go on, run again: infnet prepare" in second.said
    assert head.processes("infnet.cli") == []
    until = time.monotonic() + 20
    while left := [line for line in head.processes("ray::") if not re.search(RAYS_OWN, line)]:
        assert time.monotonic() < until, left
        time.sleep(0.2)
    assert not list(tmp_path.glob(".infnet*")), "nothing is left beside the output"
    ((stopped, info),) = Jobs(head.address).named("infnet-prepare").items()
    assert info["status"] == "STOPPED"

    third = Client(head, *call)
    assert third.end() == 0, third.said
    assert f"job {stopped}-2 on {head.address}" in third.said
    assert third.said.count("prepare: done in") == 1
    result = Result.read(str(out))
    assert result.rows == 300
    assert info["metadata"]["config_digest"] == result.config_digest
    told = json.loads(record.read_bytes())
    assert (told["exit_code"], told["uri"]) == (0, str(out))
    assert told["digest"].startswith("sha256:")

    fourth = Client(head, *call)
    assert fourth.end() == 0, fourth.said
    assert f"job {stopped}-2 has succeeded: {out}" in fourth.said
    assert len(Jobs(head.address).named("infnet-prepare")) == 2


@pytest.mark.ray
def test_bad_input_in_a_job_is_bad_input_here_and_said_once(head, tmp_path):
    at = f"compute={{type: attached, address: '{head.address}'}}"
    nowhere = f"inputs.checkpoint={tmp_path / 'nowhere'}"
    call = ["export", SMOKE, "--set", at, "--set", nowhere, f"--out={tmp_path / 'out'}"]
    client = Client(head, *call)
    assert client.end() == 2, client.said
    assert client.said.count("error: ") == 1
    assert "nowhere" in client.said
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_ray_job_submit_runs_a_verb_with_its_configuration_as_it_is(head, tmp_path):
    command = [BIN / "ray", "job", "submit", "--address", head.address, "--working-dir", "."]
    command += ["--", "infnet", "prepare", SMOKE, *FEW, "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        env=head.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert Result.read(str(tmp_path / "out")).rows == 300
    assert "warning: this is a Ray job: it uses the cluster that runs it" in done.stdout
    assert "prepare: done in" in done.stdout


@pytest.mark.ray
@pytest.mark.whole
def test_what_a_job_reads_and_writes_may_lie_on_s3(head, bucket, tmp_path):
    """The cluster has the credentials; the second client finds the result without a cluster run."""
    at = f"compute={{type: attached, address: '{head.address}'}}"
    call = ["prepare", SMOKE, *FEW, "--set", at, f"--store={bucket}/store"]
    for cached in (False, True):
        record = tmp_path / f"{cached}.json"
        client = Client(head, *call, f"--record={record}")
        assert client.end() == 0, client.said
        told = json.loads(record.read_bytes())
        assert (told["exit_code"], told["cached"]) == (0, cached)
        assert told["uri"].startswith(f"{bucket}/store/")
    assert Result.read(told["uri"]).rows == 300
    assert not [name for name in storage.names(f"{bucket}/store") if name.startswith(".infn")]


@pytest.mark.ray
@pytest.mark.whole
def test_what_a_job_deploys_answers_after_it(head, exported, tmp_path):  # noqa: F811
    at = f"compute={{type: attached, address: '{head.address}'}}"
    sets = [at, "serve.port=0", "serve.cpus_per_replica=0.5"]
    call = ["deploy", str(exported), *(w for s in sets for w in ("--set", s))]
    client = Client(head, *call, f"--out={tmp_path / 'deployed'}")
    assert client.end() == 0, client.said
    (url,) = re.findall(r"^READY (\S+)$", client.said, re.M)
    details = Result.read(str(tmp_path / "deployed")).details
    assert details["url"] == url
    sample = json.loads((exported / "sample.json").read_bytes())["request"]
    request = urllib.request.Request(f"{url}/score", data=json.dumps(sample).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    assert answer["model"] == details["model"] == manifest.content_of(str(exported))
    assert len(answer["predictions"]) == len(sample["candidates"])
