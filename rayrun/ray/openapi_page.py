"""An OpenAPI document as one HTML page, which loads nothing from anywhere."""

import json
from html import escape
from typing import Any, cast

from rayrun.config import Json

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2f6fb5; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { margin-bottom: 0; } h1 + p { margin-top: .2rem; }
section { border: 1px solid var(--line); border-radius: 8px; margin: 1.2rem 0;
  padding: 0 1rem 1rem; }
h2 { font-size: 1.1rem; } h2 b { color: var(--accent); margin-right: .6rem; }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; }
code, pre, textarea { font: 13px/1.45 ui-monospace, monospace; }
pre, textarea { background: var(--soft); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem; overflow: auto; max-height: 26rem; margin: .3rem 0; }
textarea { width: 100%; box-sizing: border-box; height: 16rem; color: inherit; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; display: block; overflow: auto; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
button { font: inherit; padding: .3rem .9rem; margin: .4rem .6rem .4rem 0; cursor: pointer; }
input { font: inherit; }
"""

SCRIPT = """
for (const form of document.querySelectorAll("form")) form.onsubmit = async (event) => {
  event.preventDefault();
  const output = form.querySelector("output"), token = form.token.value;
  const headers = {"content-type": "application/json"};
  if (token) headers.authorization = "Bearer " + token;
  const begun = performance.now();
  try {
    const answer = await fetch(form.dataset.url, {method: "POST", headers, body: form.body.value});
    const text = await answer.text(), took = (performance.now() - begun).toFixed(0);
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 1); } catch {}
    output.innerHTML = "<pre></pre>";
    output.firstChild.textContent = `${answer.status} in ${took} ms\\n${shown}`;
  } catch (error) { output.textContent = error; }
};
"""


def page(document: Json, root: str = "") -> bytes:
    """The page: each operation with its fields, its answers, an example, and a form to try it.

    Args:
        document: OpenAPI 3; references within it (`#/…`) are followed.
        root: path under which the application is mounted, before the paths of the document.
    """
    info: Json = document["info"]
    sections = [
        _section(document, root + path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    sections += [
        f'<section id="{escape(name)}"><h2><code>{escape(name)}</code></h2>'
        f"<p>{escape(schema.get('description', ''))}</p>{_table(schema)}</section>"
        for name, schema in document.get("components", {}).get("schemas", {}).items()
    ]
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style>"
        f"<h1>{escape(info['title'])}</h1>"
        f"<p>version <code>{escape(str(info['version']))}</code> · "
        f'<a href="{escape(root)}/openapi.json">openapi.json</a></p>'
        f"<p>{escape(str(info.get('description', '')))}</p>"
        f"{''.join(sections)}<script>{SCRIPT}</script></html>\n"
    ).encode()


def _section(document: Json, path: str, method: str, operation: Json) -> str:
    parts = [
        f"<section><h2><b>{escape(method.upper())}</b><code>{escape(path)}</code></h2>",
        f"<p>{escape(operation.get('summary', ''))}</p>",
    ]
    if text := operation.get("description"):
        parts.append(f"<p>{escape(text)}</p>")
    if body := _content(document, operation.get("requestBody")):
        parts.append(f"<h3>Request</h3><p>{_type(body.get('schema', {}))}</p>")
        if method == "post":
            example = json.dumps(_example(document, body), indent=1, ensure_ascii=False)
            parts.append(
                f'<h3>Try it</h3><form data-url="{escape(path)}"><textarea name=body>'
                f"{escape(example)}</textarea><button>Send</button>"
                "<label>token, if one is asked <input name=token type=password></label>"
                "<output></output></form>"
            )
    parts.append("<h3>Answers</h3>")
    for status, answer in operation.get("responses", {}).items():
        answer = _resolve(document, answer)
        parts.append(f"<p><b>{escape(str(status))}</b> {escape(answer.get('description', ''))}</p>")
        content = _content(document, answer)
        if content and (example := _example(document, content)) is not None:
            parts.append(f"<pre>{escape(json.dumps(example, indent=1, ensure_ascii=False))}</pre>")
    return "".join([*parts, "</section>"])


def _table(schema: Json) -> str:
    rows = "".join(_rows(schema, ""))
    return f"<table><tr><th>field<th>type<th>meaning</tr>{rows}</table>"


def _rows(schema: Json, path: str) -> list[str]:
    """The fields of an object and of the objects in it, up to references, which are linked."""
    rows: list[str] = []
    required: list[str] = schema.get("required", [])
    for name, inner in schema.get("properties", {}).items():
        place = f"{path}.{name}" if path else name
        mark = ", required" if name in required else ""
        cells = (f"<code>{escape(place)}</code>", _type(inner) + mark, escape(_words(inner)))
        rows.append("<tr><td>" + "<td>".join(cells) + "</tr>")
        rows += _rows(inner, place)
        rows += _rows(inner.get("items", {}), f"{place}[]")
    return rows


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    found = schema.get("type", "")
    if found == "array" and "items" in schema:
        return f"array of {_type(schema['items'])}"
    if isinstance(found, list):
        return " or ".join(escape(str(one)) for one in cast(list[Any], found))
    return escape(str(found)) or " or ".join(_type(one) for one in schema.get("anyOf", []))


def _words(schema: Json) -> str:
    words = [str(schema["description"])] if "description" in schema else []
    if "enum" in schema:
        words.append("one of " + ", ".join(map(str, schema["enum"])))
    for name in ("format", "minimum", "maximum", "minItems", "maxItems"):
        if name in schema:
            words.append(f"{name} {schema[name]}")
    return " · ".join(words)


def _content(document: Json, body: Any) -> Json:
    return dict(_resolve(document, body or {}).get("content", {}).get("application/json", {}))


def _example(document: Json, content: Json) -> Any:
    if "example" in content:
        return content["example"]
    for one in content.get("examples", {}).values():
        return one.get("value")
    schema = _resolve(document, content.get("schema", {}))
    return schema.get("example", next(iter(schema.get("examples", [])), None))


def _resolve(document: Json, found: Json) -> Json:
    if "$ref" not in found:
        return found
    place: Any = document
    for key in str(found["$ref"]).removeprefix("#/").split("/"):
        place = place[key]
    return place
