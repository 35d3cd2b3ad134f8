"""The OpenAPI 3.1 document of a scorer: every column, its type and what reads it, with a sample."""

import math
from typing import TYPE_CHECKING, Any

from infnet.features.encoder import Encoder
from infnet.serve.bundle import Bundle
from infnet.serve.json_types import JsonType
from infnet.serve.request import RequestReader
from infnet.tasks import BaseTask, BinaryTask
from rayrun.config import Json
from rayrun.ray.openapi_parts import digest_schema, document, json_content, object_schema

if TYPE_CHECKING:  # the configuration imports torch, which a server does without
    from infnet.config import ScorerServe


def openapi(bundle: Bundle, options: "ScorerServe") -> Json:
    """What `GET /openapi.json` answers.

    Raises:
        ConfigError: a column of the log has no form in JSON.
    """
    reader = RequestReader(bundle.encoder, max_candidates=options.max_candidates)
    return document(
        "Multitask scorer",
        f"Scores candidates for {_listed(bundle.schema.tasks)}. Requests carry raw values under "
        "the names of the training log's columns; the model's own encoder reads them.",
        bundle.digest,
        options,
        path="/score",
        operation=_score(bundle, options),
        schemas={
            "Request": _request(reader),
            "Row": _row(bundle.encoder, reader),
            **{f"Event.{name}": _event(bundle.encoder, reader, name) for name in reader.behaviours},
            "Answer": _answer(bundle),
        },
        refused=("candidates[3].price", 'must be a number, found "cheap"'),
    )


# ---------------------------------------------------------------------------------------------


def _score(bundle: Bundle, options: "ScorerServe") -> Json:
    answer = {"model": bundle.digest, "predictions": bundle.sample["answer"]}
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
            "content": json_content(
                {"$ref": "#/components/schemas/Request"}, bundle.sample["request"]
            ),
        },
        "responses": {
            "200": {
                "description": "One prediction per task for every candidate.",
                "content": json_content({"$ref": "#/components/schemas/Answer"}, answer),
            },
        },
    }


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
    return object_schema(
        {
            "user": row | {"description": "What is known of the user."},
            "context": row | {"description": "What is known of this request."},
            "histories": object_schema(histories, "Past events of the user, by behaviour."),
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
    return object_schema(
        properties, "Columns of a row: each stands in user, context or every candidate."
    )


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
    return object_schema(properties, most, required=list(types))


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
        "items": object_schema(tasks, required=list(tasks)),
        "description": "In the candidates' order.",
    }
    return object_schema(
        {"model": digest_schema(), "predictions": predictions}, required=["model", "predictions"]
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


def _listed(names: Any) -> str:
    return ", ".join(names)
