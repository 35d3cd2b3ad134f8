"""The OpenAPI document is valid, and says what the reader of requests does."""

import copy
import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate as validate_openapi

from infnet.config import ScorerServe
from infnet.serve.bundle import Bundle
from infnet.serve.openapi import openapi
from infnet.serve.request import RequestError, RequestReader
from rayrun.config import Json
from rayrun.ray.openapi_page import page


@pytest.fixture(scope="module")
def bundle(exported: Path) -> Bundle:
    return Bundle.open(str(exported))


@pytest.fixture(scope="module")
def document(bundle: Bundle) -> Json:
    return json.loads(json.dumps(openapi(bundle, ScorerServe()), allow_nan=False))


def accepts(document: Json, name: str, value: object) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("token", ["", "SCORER_TOKEN"])
def test_the_document_is_valid_openapi(bundle, token):
    document = openapi(bundle, ScorerServe(token_env=token, route_prefix="/scorer"))
    validate_openapi(document)
    score = document["paths"]["/score"]["post"]
    assert set(score["responses"]) == {"200", "413", "422", "503"} | ({"401"} if token else set())
    assert ("security" in score) == bool(token)
    assert document["servers"] == [{"url": "/scorer"}]


def test_its_examples_are_the_sample_of_the_bundle_and_fit_its_schemas(bundle, document):
    score = document["paths"]["/score"]["post"]
    asked = score["requestBody"]["content"]["application/json"]["example"]
    answer = score["responses"]["200"]["content"]["application/json"]["example"]
    assert asked == bundle.sample["request"]
    assert answer == {"model": bundle.digest, "predictions": bundle.sample["answer"]}
    assert accepts(document, "Request", asked)
    assert accepts(document, "Answer", answer)
    for refused in document["components"]["responses"].values():
        example = refused["content"]["application/json"]["example"]
        assert accepts(document, "Error", example)
    assert accepts(document, "Error", RequestError(422, "user.age", "must be a number").body())


def test_those_who_are_told_to_wait_are_told_how_long(document):
    refusals = document["components"]["responses"]
    assert [s for s, r in refusals.items() if "Retry-After" in r.get("headers", {})] == ["503"]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("candidates"),
        lambda r: r.update(candidates=[]),
        lambda r: r.update(extra=1),
        lambda r: r["user"].update(colour=1),
        lambda r: r["candidates"][0].update(item=True),
        lambda r: r["candidates"][0].update(item="7"),
        lambda r: r["user"].update(user=2**31),
        lambda r: r["candidates"][0].update(tag=7),
        lambda r: r["candidates"][0].update(steps=["x"] * 5),
        lambda r: r["context"].update(at=None),
        lambda r: r["histories"].update(clikcs=[]),
        lambda r: r["histories"].update(clicks=[{"item": 1, "at": 1}]),
        lambda r: r["histories"].update(clicks=[{"item": 1, "tag": "a", "at": None}]),
    ],
)
def test_what_the_schema_refuses_the_reader_refuses(bundle, document, change):
    reader = RequestReader(bundle.encoder, max_candidates=100)
    asked = copy.deepcopy(bundle.sample["request"])
    reader.read(json.dumps(asked).encode())
    change(asked)
    assert not accepts(document, "Request", asked)
    with pytest.raises(RequestError):
        reader.read(json.dumps(asked).encode())


def test_every_column_is_described_with_what_reads_it(bundle, document):
    columns = document["components"]["schemas"]["Row"]["properties"]
    assert list(columns) == list(bundle.encoder.features.columns(labels=False))
    assert columns["item"] == {
        "type": ["integer", "null"],
        "format": "int64",
        "description": "read by item (categorical), item_click (statistic)",
    }
    assert columns["user"]["description"] == "the user of the row; read by user (categorical)"
    assert columns["at"] == {
        "type": "integer",
        "format": "int64",
        "description": "the time of the row; milliseconds since 1970-01-01 UTC",
    }
    assert columns["steps"]["type"] == ["array", "null"]
    event = document["components"]["schemas"]["Event.clicks"]
    assert event["required"] == ["item", "tag", "at"]
    assert event["description"] == (
        "An event of clicks; the 4 most recent count. In the log: click == 1.0."
    )


def test_the_page_has_every_column_once_with_its_meaning(bundle, document):
    text = page(document).decode()
    of_events = ["item", "tag", "at"]
    for name in bundle.encoder.features.columns(labels=False):
        shown = len(re.findall(rf"<code>([^<]*\.)?{name}</code><td>", text))
        assert shown == 1 + of_events.count(name) + (name == "user"), name
    assert '<code>user</code><td><a href="#Row">Row</a><td>What is known of the user.' in text


def test_predictions_are_described_with_their_range(document):
    tasks = document["components"]["schemas"]["Answer"]["properties"]["predictions"]["items"]
    assert tasks["properties"] == {
        "click": {
            "type": "number",
            "minimum": 0.0,
            "maximum": 1.0,
            "description": "Probability of click",
        },
        "spend": {"type": "number", "description": "Expected spend × 0.5"},
    }


def test_the_limits_are_those_of_the_options(bundle):
    document = openapi(bundle, ScorerServe(max_candidates=5, max_body_bytes=1000))
    candidates = document["components"]["schemas"]["Request"]["properties"]["candidates"]
    assert (candidates["minItems"], candidates["maxItems"]) == (1, 5)
    assert (
        "At most 5 candidates and 1,000 bytes" in document["paths"]["/score"]["post"]["description"]
    )
    assert "more than 1,000 bytes" in document["components"]["responses"]["413"]["description"]
