"""Bodies, tokens and errors of whatever is served."""

import asyncio

import pytest

from rayrun.config import ConfigError
from rayrun.ray import http
from rayrun.ray.http import DisconnectedError, HttpError, authorize, path_of, read_body, read_token


def scope(**headers):
    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return {"headers": named, "path": "/a/score", "root_path": "/a"}


def body(parts, limit=10, **headers):
    """What `read_body` makes of these messages."""
    messages = iter(parts)

    async def receive():
        for part in messages:
            if part is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part, "more_body": part != b""}
        await asyncio.sleep(60)

    return asyncio.run(read_body(scope(**headers), receive, limit))


def test_a_body_is_what_was_sent_up_to_the_limit():
    assert body([b"12345", b"67890", b""]) == b"1234567890"


@pytest.mark.parametrize(
    ("parts", "headers", "status", "message"),
    [
        ([], {"content_length": "11"}, 413, "at most 10 bytes, found 11"),
        ([b"123456", b"12345", b""], {}, 413, "at most 10 bytes, found 11"),
        ([], {"content_encoding": "gzip"}, 415, "send it without Content-Encoding"),
        ([b"1"], {"content_length": "5"}, 408, "must arrive within 0.05 s"),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused(monkeypatch, parts, headers, status, message):
    monkeypatch.setattr(http, "BODY_TIMEOUT_S", 0.05)
    with pytest.raises(HttpError, match=message) as refused:
        body(parts, **headers)
    assert refused.value.status == status
    assert refused.value.body() == {"error": {"path": "", "message": str(refused.value)}}


def test_a_caller_who_has_gone_is_noticed():
    with pytest.raises(DisconnectedError):
        body([b"1", None])


def test_a_token_is_required_where_one_is_set(monkeypatch):
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    assert read_token("") == ""
    with pytest.raises(
        ConfigError, match=r"serve.token_env names .* SCORER_TOKEN, which must hold"
    ):
        read_token("SCORER_TOKEN")
    monkeypatch.setenv("SCORER_TOKEN", "secret")
    token = read_token("SCORER_TOKEN")
    authorize(scope(authorization="bearer secret"), token)
    authorize(scope(), "")
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
        with pytest.raises(HttpError, match="Authorization: Bearer TOKEN` is required") as refused:
            authorize(scope(**given), token)
        assert refused.value.status == 401
        assert refused.value.headers == {"www-authenticate": "Bearer"}


def test_a_path_is_that_below_the_prefix():
    assert path_of(scope()) == "/score"
    assert path_of({"path": "/a", "root_path": "/a"}) == "/"
    assert path_of({"path": "/score"}) == "/score"


def test_an_answer_that_is_not_finite_is_no_json():
    assert http.as_json({"p": 0.5, "é": [1]}) == '{"p":0.5,"é":[1]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        http.as_json(float("nan"))
