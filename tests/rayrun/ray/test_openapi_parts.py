"""What every application's document holds, whatever its own operation."""

import pytest
from openapi_spec_validator import validate

from rayrun.ray.openapi_parts import document, json_content, object_schema
from rayrun.ray.serve_options import ServeOptions

SCHEMAS = {"Request": object_schema({"n": {"type": "integer"}}, required=["n"])}
OPERATION = {
    "summary": "Count",
    "operationId": "count",
    "requestBody": {"content": json_content({"$ref": "#/components/schemas/Request"}, {"n": 1})},
    "responses": {"200": {"description": "Counted."}},
}


@pytest.mark.parametrize(("token", "statuses"), [("", set()), ("TOKEN", {"401"})])
def test_a_document_is_valid_and_names_every_refusal(token, statuses):
    options = ServeOptions(token_env=token, route_prefix="/counter")
    found = document(
        "Counter",
        "Counts.",
        "sha256:1",
        options,
        path="/count",
        operation=OPERATION,
        schemas=SCHEMAS,
        refused=("n", "must be an integer"),
    )
    validate(found)
    assert found["servers"] == [{"url": "/counter"}]
    post = found["paths"]["/count"]["post"]
    assert post["responses"].keys() == {"200", "413", "422", "503"} | statuses
    assert ("security" in post) == bool(token)
    example = found["components"]["responses"]["422"]["content"]["application/json"]["example"]
    assert example == {"error": {"path": "n", "message": "must be an integer"}}
