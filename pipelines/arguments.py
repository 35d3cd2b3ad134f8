"""Arguments of a pipeline from the command line, checked against what the pipeline takes."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.compiled import Input, PipelineError


def _string(text: str) -> str:
    return text


def _integer(text: str) -> int:
    return int(text)


def _double(text: str) -> float:
    return float(text)


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _list(text: str) -> list[Any]:
    value = json.loads(text)
    if not isinstance(value, list):
        raise ValueError
    return value


def _struct(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


TYPES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "STRING": ("a string", _string),
    "NUMBER_INTEGER": ("a whole number", _integer),
    "NUMBER_DOUBLE": ("a number", _double),
    "BOOLEAN": ("true or false", _boolean),
    "LIST": ('a list in JSON (["a", "b"])', _list),
    "STRUCT": ('an object in JSON ({"a": 1})', _struct),
}
"""What each type of KFP is called, and how it is read."""


def parse(
    pipeline: str, inputs: Mapping[str, Input], given: Sequence[str], **fixed: Any
) -> dict[str, Any]:
    """The arguments `key=value` of a pipeline, each of the type that the pipeline wants.

    Args:
        pipeline: its name, for messages.
        inputs: what it takes.
        given: `key=value`, as written.
        fixed: arguments that have options of their own on the command line.

    Raises:
        PipelineError: an argument without `=`, unknown, given twice, of a wrong type, or missing.
    """
    found = dict(fixed)
    for argument in given:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            raise PipelineError(f"an argument must be key=value, found {argument!r}")
        if name not in inputs:
            near = difflib.get_close_matches(name, inputs, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PipelineError(
                f"{name} is no argument of the pipeline {pipeline}, which takes "
                f"{', '.join(inputs)}{hint}"
            )
        if name in found:
            raise PipelineError(f"the argument {name} is given twice; give it once")
        wanted, read = TYPES[inputs[name].type]
        try:
            found[name] = read(text)
        except (ValueError, KeyError):
            raise PipelineError(f"{name} must be {wanted}, found {text!r}") from None
    missing = [i.name for i in inputs.values() if i.required and i.name not in found]
    if missing:
        needed = ", ".join(f"{name}=…" for name in missing)
        raise PipelineError(f"the pipeline {pipeline} needs {needed}, which is not given")
    empty = [i.name for i in inputs.values() if i.required and found[i.name] == ""]
    if empty:
        raise PipelineError(f"{empty[0]} must not be empty, found {found[empty[0]]!r}")
    return found
