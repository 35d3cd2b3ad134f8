"""The OpenAPI 3.1 document of a recommender, with the bundle's own sample as the example."""

from layer_select.export.bundle import Bundle
from layer_select.serve.config import RecommenderServe
from rayrun.config import Json
from rayrun.ray.openapi_parts import digest_schema, document, json_content, object_schema

ITEM: Json = {"$ref": "#/components/schemas/Item"}


def openapi(bundle: Bundle, options: RecommenderServe) -> Json:
    """What `GET /openapi.json` answers."""
    return document(
        "Recommender",
        f"The next items after a history, of a catalogue of {len(bundle.items):,}.",
        bundle.digest,
        options,
        path="/recommend",
        operation=_recommend(bundle, options),
        schemas={"Item": _item(), "Request": _request(bundle, options), "Answer": _answer()},
        refused=("history[2]", 'the catalogue has no item and no title "B00X"'),
    )


def _recommend(bundle: Bundle, options: RecommenderServe) -> Json:
    answer = {"model": bundle.digest, "items": bundle.sample["answer"]}
    return {
        "summary": "Recommend the next items for one history",
        "description": (
            f"The latest {bundle.prompt.max_history} titles of the history become the prompt, or "
            f"as many of them as fit into {bundle.prompt.max_tokens} tokens. Items of the history "
            "are recommended again unless they are excluded. A history of more than "
            f"{options.max_history_items:,} items is 413, as is a body of more than "
            f"{options.max_body_bytes:,} bytes."
        ),
        "operationId": "recommend",
        "requestBody": {
            "required": True,
            "content": json_content(
                {"$ref": "#/components/schemas/Request"}, bundle.sample["request"]
            ),
        },
        "responses": {
            "200": {
                "description": "The best items, the best first.",
                "content": json_content({"$ref": "#/components/schemas/Answer"}, answer),
            },
        },
    }


def _item() -> Json:
    text: Json = {"type": "string"}
    return {
        "description": (
            "An item of the catalogue by its id or its title (the id wins), or by either alone as "
            'an object. Only {"title": …} may name an item that the catalogue does not have.'
        ),
        "anyOf": [
            text,
            object_schema({"item": text}, required=["item"]),
            object_schema({"title": text}, required=["title"]),
        ],
    }


def _request(bundle: Bundle, options: RecommenderServe) -> Json:
    def items(description: str, least: int, most: int | None) -> Json:
        found: Json = {"type": "array", "items": ITEM, "description": description}
        found |= {"minItems": least} if least else {}
        return found | ({"maxItems": most} if most else {})

    return object_schema(
        {
            "history": items("Oldest first.", 1, options.max_history_items),
            "k": {
                "type": "integer",
                "minimum": 1,
                "maximum": max(len(bundle.items), options.max_candidates),
                "description": "How many items; at most what is left without the excluded.",
            },
            "exclude": items("Items of the catalogue not to be recommended.", 0, None),
            "candidates": items(
                "What is to be ranked, each once. Left out: the catalogue.",
                1,
                options.max_candidates,
            ),
        },
        required=["history", "k"],
    )


def _answer() -> Json:
    item = object_schema(
        {
            "item": {
                "type": ["string", "null"],
                "description": "Its id; null for a candidate that the catalogue does not have.",
            },
            "title": {"type": "string"},
            "score": {
                "type": "number",
                "description": "h · v, a logit: only differences within one answer say something.",
            },
        },
        required=["item", "title", "score"],
    )
    items = {"type": "array", "items": item, "description": "The best first."}
    return object_schema({"model": digest_schema(), "items": items}, required=["model", "items"])
