"""A page that stands alone: nothing is loaded, and what the document says cannot become markup."""

from rayrun.ray.openapi_page import page

DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "A <b>scorer</b>", "version": "sha256:1", "description": "Scores & ranks."},
    "paths": {
        "/score": {
            "post": {
                "summary": "Score",
                "description": "In order.",
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {"$ref": "#/components/schemas/Row"},
                            "example": {"text": "</textarea><script>alert(1)</script>"},
                        }
                    }
                },
                "responses": {"422": {"$ref": "#/components/responses/bad"}},
            }
        }
    },
    "components": {
        "responses": {"bad": {"description": "Wrong type."}},
        "schemas": {
            "Row": {
                "type": "object",
                "required": ["price"],
                "properties": {
                    "price": {"type": ["number", "null"], "minimum": 0, "description": "in cents"},
                    "events": {"type": "array", "items": {"$ref": "#/components/schemas/Event"}},
                    "who": {"$ref": "#/components/schemas/Event", "description": "of them"},
                    "kind": {"anyOf": [{"type": "string"}, {"type": "null"}], "enum": ["a", None]},
                    "inner": {"type": "object", "properties": {"deep": {"type": "string"}}},
                },
            },
            "Event": {"type": "object", "properties": {}},
        },
    },
}


def test_the_page_names_every_field_and_loads_nothing():
    text = page(DOCUMENT, "/beside").decode()
    for shown in (
        "<code>/beside/score</code>",
        '<a href="/beside/openapi.json">',
        "<code>price</code><td>number or null, required<td>in cents · minimum 0",
        '<code>events</code><td>array of <a href="#Event">Event</a>',
        '<code>who</code><td><a href="#Event">Event</a><td>of them',
        "<code>kind</code><td>string or null<td>one of a, None",
        "<code>inner.deep</code>",
        "<b>422</b> Wrong type.",
        "Scores &amp; ranks.",
    ):
        assert shown in text, shown
    assert "://" not in text
    assert "<b>scorer" not in text
    assert text.count("<script>") == text.count("</script>") == 1
