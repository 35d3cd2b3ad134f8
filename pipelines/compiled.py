"""A pipeline as what KFP runs: the compiled specification, its inputs, its steps."""

import difflib
import graphlib
import importlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import compiler

from pipelines import PIPELINES

EXIT_HANDLER = "finish"
"""The task that runs at the end whatever happens; it is no step of the work."""


class PipelineError(ValueError):
    """A mistake of the caller, in one readable line."""


@dataclass(frozen=True)
class Input:
    """One argument of a pipeline."""

    name: str
    type: str
    """As KFP writes it: `STRING`, `NUMBER_INTEGER`, `LIST`, …"""
    required: bool
    default: Any = None
    help: str = ""


def compiled(name: str) -> str:
    """The specification of a pipeline, as YAML.

    Raises:
        PipelineError: there is no such pipeline.
    """
    module, _, function = _place(name).partition(":")
    pipeline = getattr(importlib.import_module(module), function)
    with tempfile.TemporaryDirectory(prefix="compile-") as folder:
        file = Path(folder) / f"{name}.yaml"
        compiler.Compiler().compile(pipeline, str(file))
        return file.read_text(encoding="utf-8")


def _place(name: str) -> str:
    if name in PIPELINES:
        return PIPELINES[name]
    near = difflib.get_close_matches(name, PIPELINES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise PipelineError(
        f"NAME must be one of the pipelines ({', '.join(PIPELINES)}), found {name!r}{hint}"
    )


def inputs_of(spec: Mapping[str, Any]) -> dict[str, Input]:
    """The inputs of a specification by name, those that are required first."""
    described = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    found = [
        Input(
            name=name,
            type=entry["parameterType"],
            required=not entry.get("isOptional", False),
            default=entry.get("defaultValue"),
            help=" ".join(entry.get("description", "").split()),
        )
        for name, entry in described.items()
    ]
    return {i.name: i for i in sorted(found, key=lambda i: not i.required)}


def steps_of(spec: Mapping[str, Any]) -> list[str]:
    """Names of the steps of a specification, each after those that it waits for."""
    return [name for name in _tasks(spec, spec["root"]["dag"]) if name != EXIT_HANDLER]


def _tasks(spec: Mapping[str, Any], dag: Mapping[str, Any]) -> list[str]:
    tasks = dag["tasks"]
    order = graphlib.TopologicalSorter({n: t.get("dependentTasks", []) for n, t in tasks.items()})
    found: list[str] = []
    for name in order.static_order():
        component = spec["components"][tasks[name]["componentRef"]["name"]]
        if "dag" in component:
            found += _tasks(spec, component["dag"])
        else:
            found.append(tasks[name]["taskInfo"]["name"])
    return found
