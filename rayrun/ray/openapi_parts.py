"""What the OpenAPI 3.1 documents of all applications share: errors, health, tokens, small forms."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from rayrun.config import Json
from rayrun.ray.serve_options import ServeOptions

TOKEN = "token"
VERSION = f"infnet-ray {version('infnet-ray')}."


def document(
    title: str,
    description: str,
    digest: str,
    options: ServeOptions,
    *,
    path: str,
    operation: Json,
    schemas: Mapping[str, Json],
    refused: tuple[str, str],
) -> Json:
    """The whole document of an application with one operation of its own.

    Args:
        title: of the page.
        description: what it does, in a sentence or two.
        digest: version of the model.
        options: limits, prefix and token.
        path: of the operation, a POST.
        operation: its summary, description, operationId, requestBody and the response 200.
        schemas: components that it refers to.
        refused: an example of a 422: the field's path, and what is said of it.
    """
    statuses = ["413", "422", "503"] + (["401"] if options.token_env else [])
    refusals = {s: {"$ref": f"#/components/responses/{s}"} for s in sorted(statuses)}
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": digest, "description": f"{description} {VERSION}"},
        "servers": [{"url": options.route_prefix.rstrip("/") or "/"}],
        "paths": {
            path: {"post": operation | {"responses": operation["responses"] | refusals}},
            "/healthz": {"get": _healthz(digest)},
        },
        "components": {
            "schemas": {**schemas, "Error": _error()},
            "responses": _refusals(options, refused),
        },
    }
    if options.token_env:
        found["components"]["securitySchemes"] = {TOKEN: {"type": "http", "scheme": "bearer"}}
        found["paths"][path]["post"]["security"] = [{TOKEN: []}]
    return found


def object_schema(properties: Any, description: str = "", *, required: Any = ()) -> Json:
    """An object with these fields and no others."""
    found: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        found["required"] = list(required)
    return found | ({"description": description} if description else {})


def json_content(schema: Json, example: Any) -> Json:
    """A JSON body of that schema, with an example."""
    return {"application/json": {"schema": schema, "example": example}}


def digest_schema() -> Json:
    """The digest that every answer names."""
    return {"type": "string", "description": "Digest of the bundle: the version of the model."}


def _healthz(digest: str) -> Json:
    schema = object_schema(
        {"ready": {"type": "boolean"}, "model": digest_schema()}, required=["ready", "model"]
    )
    return {
        "summary": "Ready, and with which model",
        "operationId": "healthz",
        "responses": {
            "200": {
                "description": "The bundle has been opened and has reproduced its own sample.",
                "content": json_content(schema, {"ready": True, "model": digest}),
            },
        },
    }


def _refusals(options: ServeOptions, refused: tuple[str, str]) -> Json:
    busy = {
        "Retry-After": {
            "description": "Seconds after which the caller may try again.",
            "schema": {"type": "integer", "minimum": 0},
        }
    }
    found: dict[str, tuple[str, Json, str, str]] = {
        "413": (
            f"The body has more than {options.max_body_bytes:,} bytes.",
            {},
            "",
            f"the body must have at most {options.max_body_bytes:,} bytes",
        ),
        "422": (
            "A field is unknown, missing or of the wrong type; the path says which.",
            {},
            *refused,
        ),
        "503": (
            f"Busy: {options.max_queued_requests} requests already wait for a replica; or not "
            "ready yet.",
            busy,
            "",
            "busy; try again",
        ),
    }
    if options.token_env:
        challenge = {"WWW-Authenticate": {"schema": {"type": "string"}}}
        needed = "the header `Authorization: Bearer TOKEN` is required"
        found["401"] = ("The bearer token is missing or wrong.", challenge, "", needed)
    return {
        status: {
            "description": description,
            **({"headers": headers} if headers else {}),
            "content": json_content(
                {"$ref": "#/components/schemas/Error"},
                {"error": {"path": path, "message": message}},
            ),
        }
        for status, (description, headers, path, message) in found.items()
    }


def _error() -> Json:
    inner = object_schema(
        {
            "path": {"type": "string", "description": "The field, or empty: the whole request."},
            "message": {"type": "string", "description": "What is required, and what was found."},
        },
        required=["path", "message"],
    )
    return object_schema({"error": inner}, required=["error"])
