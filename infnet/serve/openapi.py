"""The OpenAPI 3.1 document of a scorer: every column, its type and what reads it, with a sample."""

import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from infnet.features.encoder import Encoder
from infnet.serve.bundle import Bundle
from infnet.serve.json_types import JsonType
from infnet.serve.request import RequestReader
from infnet.tasks import BaseTask, BinaryTask
from rayrun.config import Json

if TYPE_CHECKING:  # the configuration imports torch, which a server does without
    from infnet.config import ScorerServe

TOKEN = "token"


def openapi(bundle: Bundle, options: "ScorerServe") -> Json:
    """What `GET /openapi.json` answers.

    Raises:
        ConfigError: a column of the log has no form in JSON.
    """
    reader = RequestReader(bundle.encoder, max_candidates=options.max_candidates)
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "Multitask scorer",
            "version": bundle.digest,
            "description": (
                f"Scores candidates for {_listed(bundle.schema.tasks)}. Requests carry raw "
                "values under the names of the training log's columns; the model's own encoder "
                "reads them. infnet-ray "
                f"{version('infnet-ray')}."
            ),
        },
        "servers": [{"url": options.route_prefix.rstrip("/") or "/"}],
        "paths": {
            "/score": {"post": _score(bundle, options)},
            "/healthz": {"get": _healthz(bundle)},
        },
        "components": {
            "schemas": {
                "Request": _request(reader),
                "Row": _row(bundle.encoder, reader),
                **{
                    f"Event.{name}": _event(bundle.encoder, reader, name)
                    for name in reader.behaviours
                },
                "Answer": _answer(bundle),
                "Error": _error(),
            },
            "responses": _refusals(options),
        },
    }
    if options.token_env:
        document["components"]["securitySchemes"] = {TOKEN: {"type": "http", "scheme": "bearer"}}
        document["paths"]["/score"]["post"]["security"] = [{TOKEN: []}]
    return document


# ---------------------------------------------------------------------------------------------
# Operations


def _score(bundle: Bundle, options: "ScorerServe") -> Json:
    answer = {"model": bundle.digest, "predictions": bundle.sample["answer"]}
    refused = ["422", "413", "503"] + (["401"] if options.token_env else [])
    return {
        "summary": "Score candidates for one user",
        "description": (
            "A candidate's row is user, context and the candidate, the later winning: put what all "
            "candidates share into user or context. Every column must stand somewhere; null means "
            "unknown. Statistics of keys are those at the end of training; histories "
            "are the caller's. The predictions are in the candidates' order and do not depend on "
            f"one another. At most {options.max_candidates:,} candidates and "
            f"{options.max_body_bytes:,} bytes."
        ),
        "operationId": "score",
        "requestBody": {
            "required": True,
            "content": _json({"$ref": "#/components/schemas/Request"}, bundle.sample["request"]),
        },
        "responses": {
            "200": {
                "description": "One prediction per task for every candidate.",
                "content": _json({"$ref": "#/components/schemas/Answer"}, answer),
            },
            **{status: {"$ref": f"#/components/responses/{status}"} for status in sorted(refused)},
        },
    }


def _healthz(bundle: Bundle) -> Json:
    schema = _object(
        {"ready": {"type": "boolean"}, "model": _digest()}, required=["ready", "model"]
    )
    return {
        "summary": "Ready, and with which model",
        "operationId": "healthz",
        "responses": {
            "200": {
                "description": "The bundle has been opened and has reproduced its own sample.",
                "content": _json(schema, {"ready": True, "model": bundle.digest}),
            },
        },
    }


def _refusals(options: "ScorerServe") -> Json:
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
            "candidates[3].price",
            'must be a number, found "cheap"',
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
            "content": _json(
                {"$ref": "#/components/schemas/Error"},
                {"error": {"path": path, "message": message}},
            ),
        }
        for status, (description, headers, path, message) in found.items()
    }


# ---------------------------------------------------------------------------------------------
# Schemas


def _request(reader: RequestReader) -> Json:
    row: Json = {"$ref": "#/components/schemas/Row"}
    histories = {
        name: {
            "type": "array",
            "items": {"$ref": f"#/components/schemas/Event.{name}"},
            "description": "Oldest first. Left out: no events.",
        }
        for name in reader.behaviours
    }
    return _object(
        {
            "user": row | {"description": "What is known of the user."},
            "context": row | {"description": "What is known of this request."},
            "histories": _object(histories, "Past events of the user, by behaviour."),
            "candidates": {
                "type": "array",
                "items": row,
                "minItems": 1,
                "maxItems": reader.max_candidates,
                "description": "What is to be scored.",
            },
        },
        required=["candidates"],
    )


def _row(encoder: Encoder, reader: RequestReader) -> Json:
    properties: Json = {}
    for name, kind in reader.columns.items():
        schema = kind.schema if name in reader.never_null else kind.nullable
        properties[name] = schema | {"description": _meaning(encoder, name, kind)}
    return _object(properties, "Columns of a row: each stands in user, context or every candidate.")


def _event(encoder: Encoder, reader: RequestReader, behaviour: str) -> Json:
    types = reader.behaviours[behaviour]
    time = encoder.features.roles.time
    properties: Json = {}
    for name, kind in types.items():
        is_time = time is not None and name == time.column
        what = "when it happened" if is_time else f"read by {behaviour}"
        schema = kind.schema if is_time else kind.nullable
        properties[name] = schema | {"description": _words(what, kind)}
    where = encoder.demands().histories[behaviour]
    most = f"An event of {behaviour}; the {where.max_length} most recent count."
    if where.where:
        condition = where.where
        most += f" In the log: {condition.column} {condition.op} {condition.value}."
    return _object(properties, most, required=list(types))


def _meaning(encoder: Encoder, column: str, kind: JsonType) -> str:
    features, roles = encoder.features, encoder.features.roles.names()
    read = [
        f"{name} ({getattr(feature, 'type')})"  # noqa: B009 (each type is a literal of its class)
        for name, feature in features.features.items()
        if column in feature.columns(name)
    ]
    is_role = [role for role, name in roles.items() if name == column and role in ("user", "time")]
    words = [f"the {role} of the row" for role in is_role]
    words += [f"read by {_listed(read)}"] if read else []
    return _words("; ".join(words), kind)


def _words(meaning: str, kind: JsonType) -> str:
    unit = kind.schema.get("description", "")
    return f"{meaning}; {unit}" if unit else meaning


def _answer(bundle: Bundle) -> Json:
    tasks = {name: _prediction(task) for name, task in bundle.schema.tasks.items()}
    predictions = {
        "type": "array",
        "items": _object(tasks, required=list(tasks)),
        "description": "In the candidates' order.",
    }
    return _object(
        {"model": _digest(), "predictions": predictions}, required=["model", "predictions"]
    )


def _prediction(task: BaseTask) -> Json:
    label = task.source
    what = label.column if label.scale == 1 else f"{label.column} × {label.scale:g}"
    if label.above is not None:
        what = f"{label.column} > {label.above:g}"
    if isinstance(task, BinaryTask):
        meaning = f"Probability of {what}"
        meaning += f", {task.parent} included" if task.parent else ""
    else:
        meaning = f"Expected {what}"
    found: Json = {"type": "number", "description": meaning}
    low, high = task.label_range
    found |= {"minimum": low} if math.isfinite(low) else {}
    return found | ({"maximum": high} if math.isfinite(high) else {})


def _error() -> Json:
    inner = _object(
        {
            "path": {"type": "string", "description": "The field, or empty: the whole request."},
            "message": {"type": "string", "description": "What is required, and what was found."},
        },
        required=["path", "message"],
    )
    return _object({"error": inner}, required=["error"])


def _digest() -> Json:
    return {"type": "string", "description": "Digest of the bundle: the version of the model."}


def _object(properties: Any, description: str = "", *, required: Any = ()) -> Json:
    found: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        found["required"] = list(required)
    return found | ({"description": description} if description else {})


def _json(schema: Json, example: Any) -> Json:
    return {"application/json": {"schema": schema, "example": example}}


def _listed(names: Any) -> str:
    return ", ".join(names)
