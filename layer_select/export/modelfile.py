"""Modelfile: what `ollama create NAME -f Modelfile` makes a model of `model.gguf` with.

    FROM ./model.gguf
    TEMPLATE …
    PARAMETER num_ctx 4096
    PARAMETER stop "<|endoftext|>"
    SYSTEM …
    LICENSE …

Template, parameters, system text, messages and licence are those of the Ollama model that the
recommender was made from, where it was.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rayrun.config import ConfigError

LONGEST_CONTEXT = 8192
"""`num_ctx` where the source names none: what runtimes reserve memory for, whatever is asked."""
BARE = "{{ .Prompt }}"
"""The template of a model that is no chat model."""
ROLES = ("system", "user", "assistant")

Beside = Callable[[str], bytes | None]
"""Content of a layer of an Ollama model by its kind; None: there is none."""


def modelfile(
    beside: Beside, *, gguf: str, context: int, stop: Sequence[str], chat_template: bool
) -> str:
    """The text of a Modelfile.

    Args:
        beside: finds `template`, `params` (JSON), `system`, `messages` (JSON) and `license` of the
            source.
        gguf: name of the model's file, beside the Modelfile.
        context: longest prompt of the model in tokens.
        stop: texts that end an answer, where the source names none.
        chat_template: the file has a chat template, which Ollama recognises by itself.

    Raises:
        ConfigError: a text that cannot be quoted, or parameters or messages that are not JSON of
            the right form.
    """
    lines = [f"FROM ./{gguf}"]
    template = _text(beside, "template")
    if template is None and not chat_template:
        template = BARE
    if template is not None:
        lines.append(f"TEMPLATE {_quoted(template, 'template')}")
    given = _parameters(beside)
    given.setdefault("num_ctx", min(context, LONGEST_CONTEXT))
    given.setdefault("stop", list(dict.fromkeys(stop)))
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            lines.append(f"PARAMETER {name} {_value(one)}")
    if (system := _text(beside, "system")) is not None:
        lines.append(f"SYSTEM {_quoted(system, 'system')}")
    for role, content in _messages(beside):
        lines.append(f"MESSAGE {role} {_quoted(content, 'messages')}")
    if (text := _text(beside, "license")) is not None:
        lines.append(f"LICENSE {_quoted(text, 'license')}")
    return "\n".join(lines) + "\n"


def _text(beside: Beside, kind: str) -> str | None:
    content = beside(kind)
    text = "" if content is None else content.decode("utf-8", "replace")
    return text if text.strip() else None


def _quoted(text: str, kind: str) -> str:
    if '"""' in text:
        raise ConfigError(
            f"the {kind} of the source holds three quotation marks in a row, which a Modelfile "
            "cannot say; --set export.gguf=none leaves GGUF file and Modelfile out"
        )
    return f'"""{text}"""'


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        _quoted(value, "params")
        if isinstance(value, str) and "\n" in value
        else (f'"{value}"' if isinstance(value, str) else str(value))
    )


def _json(beside: Beside, kind: str, cls: type, form: str) -> Any:
    content = beside(kind)
    if content is None:
        return cls()
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ConfigError(
            f"the {kind} of the source must be JSON ({error}); pull the model again"
        ) from None
    if not isinstance(found, cls):
        raise ConfigError(f"the {kind} of the source must be {form}, found {str(found)[:80]}")
    return found


def _parameters(beside: Beside) -> dict[str, Any]:
    found = _json(beside, "params", dict, "a mapping of parameters to values")
    return {str(name): value for name, value in found.items()}


def _messages(beside: Beside) -> list[tuple[str, str]]:
    form = f"a list of messages with a role ({', '.join(ROLES)}) and content"
    found: list[tuple[str, str]] = []
    for message in _json(beside, "messages", list, form):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise ConfigError(f"the messages of the source must be {form}, found {message!r}")
        found.append((role, str(message.get("content", ""))))
    return found
