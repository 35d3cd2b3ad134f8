"""The Jobs API against servers that are not there, not Ray's, or not well; a log that comes in pieces."""

import asyncio
import time

import pytest
from aiohttp import web
from answering_dashboard import Dashboard, Handler, says

from infnet.cli import main
from rayrun.config import ConfigError
from rayrun.ray import job_client
from rayrun.ray.job_client import Jobs
from rayrun.ray.job_log import follow


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (job_client.TOKEN, job_client.TOKEN_PATH, job_client.MODE):
        monkeypatch.delenv(name, raising=False)


def test_a_host_that_is_not_there_is_one_error_at_once(closed_port, tmp_path, capfd):
    sets = f"compute={{type: attached, address: 'http://127.0.0.1:{closed_port}'}}"
    code = main(
        ["prepare", "configs/infnet/smoke.yaml", "--set", sets, f"--out={tmp_path / 'out'}"]
    )
    said = capfd.readouterr().err
    assert code == 2
    assert said.startswith("error: compute.address (http://127.0.0.1:")
    assert "nothing answers (Connection refused)" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
    started = time.monotonic()
    with pytest.raises(ConfigError, match="nothing answers"):
        Jobs(f"http://127.0.0.1:{closed_port}")
    assert time.monotonic() - started < job_client.CONNECT_S


@pytest.mark.parametrize("answer", [says("no", 404), says("<html>"), says([])])
def test_a_server_that_is_no_ray_dashboard_is_named_as_such(dashboard, answer):
    dashboard.answers["/api/version"] = answer
    with pytest.raises(
        ConfigError, match=r"is no Ray dashboard with the Jobs API .*ray\[default\]"
    ):
        Jobs(dashboard.url)


@pytest.fixture
def no_token(monkeypatch):
    """Neither that of the tests nor what a Ray of another test leaves in this process."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_the_token_is_found_where_ray_finds_it(dashboard, no_token, monkeypatch, tmp_path):
    Jobs(dashboard.url)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    Jobs(dashboard.url)
    assert dashboard.tokens == {""}, "a default token is for clusters in mode token only"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    Jobs(dashboard.url)
    (tmp_path / "token").write_text("of-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    Jobs(dashboard.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-variable")
    Jobs(dashboard.url)
    assert dashboard.tokens == {"", *(f"Bearer of-{n}" for n in ("home", "file", "variable"))}


def test_a_token_that_is_missing_or_refused_says_which(dashboard, no_token, monkeypatch, tmp_path):
    dashboard.answers["/api/version"] = says("no", 401)
    with pytest.raises(
        ConfigError, match=r"wants its token \(401\), none is set; set RAY_AUTH_TOK"
    ):
        Jobs(dashboard.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    dashboard.answers["/api/version"] = says("no", 403)
    with pytest.raises(ConfigError, match=r"wants its token \(403\), a token was sent, and is not"):
        Jobs(dashboard.url)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"RAY_AUTH_TOKEN_PATH must name a file .*none \(No such"):
        Jobs(dashboard.url)


def test_a_dashboard_that_falters_is_asked_again_and_one_that_is_gone_given_up(
    dashboard, monkeypatch
):
    answers = iter([says("busy", 503), says("Traceback\nbroken", 500), says({"status": "RUNNING"})])

    async def falter(request: web.Request) -> web.Response:
        return await next(answers)(request)

    jobs = Jobs(dashboard.url)
    dashboard.answers["/api/jobs/a"] = falter
    assert jobs.info("a") == {"status": "RUNNING"}
    with pytest.raises(ConfigError, match=r"does not know the job b any more; .*run again"):
        jobs.info("b")
    jobs.patience_s = 0.1
    dashboard.answers["/api/jobs/a"] = says("Traceback\nbroken", 500)
    with pytest.raises(ConfigError, match=r"no answer for 0\.1 s \(500: broken\); .* follow it"):
        jobs.info("a")


def test_a_job_that_the_cluster_does_not_take_is_one_error(dashboard, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # Ray's client alone would go there
    dashboard.answers["/api/jobs/"] = says([])
    (tmp_path / "notes.txt").write_text("of mine")
    jobs = Jobs(dashboard.url)
    with pytest.raises(
        ConfigError, match=r"cannot be submitted: .*404.*keep large files out of it"
    ):
        jobs.submit("a", "true", {"working_dir": str(tmp_path)}, {})
    assert any(path.startswith("/api/packages/") for path in dashboard.asked)


# ---------------------------------------------------------------------------------------------
# Logs

LOG = "".join(f"line {n // 2} naïve\n" for n in range(400)) + "the end"
"""Every line stands twice; the last is not ended."""


def followed(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("rayrun.ray.job_log.AGAIN_S", 0.0)
    lines: list[str] = []
    follow(Jobs(dashboard.url), "a", lines.append)
    return lines


def ends_after(times: int) -> Handler:
    """The job runs for some questions."""
    left = iter(range(times))

    async def answer(request: web.Request) -> web.Response:
        ended = next(left, None) is None
        return await says({"status": "SUCCEEDED" if ended else "RUNNING"})(request)

    return answer


def test_a_log_whose_connections_break_is_shown_once(dashboard, monkeypatch):
    stops = iter([10, 37, 37, 205, 5, 399, 380])

    async def tail(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        lines = LOG.splitlines(keepends=True)
        stop = next(stops, len(lines))
        for at in range(0, stop, 7):  # pieces that begin and end anywhere
            await socket.send_str("".join(lines[at : min(at + 7, stop)]))
        if stop < len(lines):
            assert request.transport is not None
            request.transport.abort()
        return socket

    dashboard.answers |= {
        "/api/jobs/a": ends_after(8),
        "/api/jobs/a/logs/tail": tail,
        "/api/jobs/a/logs": says("no", 500),  # only the connections tell it
    }
    monkeypatch.setattr("rayrun.ray.job_log.REST_TRIES", 1)
    *lines, note = followed(dashboard, monkeypatch)
    assert lines == LOG.split("\n")
    assert "the rest of the log of a cannot be read: 500: no" in note


def test_where_no_connection_can_be_followed_the_log_is_asked_for(dashboard, monkeypatch):
    grown = iter(LOG[: len(LOG) * part // 3] for part in range(3))

    async def so_far(request: web.Request) -> web.Response:
        return await says({"logs": next(grown, LOG)})(request)

    dashboard.answers |= {"/api/jobs/a": ends_after(3), "/api/jobs/a/logs": so_far}
    assert followed(dashboard, monkeypatch) == LOG.split("\n")


def test_a_connection_that_went_silent_is_made_again(dashboard, monkeypatch):
    monkeypatch.setattr("rayrun.ray.job_log.QUIET_S", 0.2)

    async def silent(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(LOG[:100])
        await asyncio.sleep(30)
        return socket

    dashboard.answers |= {
        "/api/jobs/a": ends_after(2),
        "/api/jobs/a/logs/tail": silent,
        "/api/jobs/a/logs": says({"logs": LOG}),
    }
    started = time.monotonic()
    assert followed(dashboard, monkeypatch) == LOG.split("\n")
    assert time.monotonic() - started < 15
