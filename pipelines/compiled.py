"""A pipeline as what KFP runs: the compiled specification, its inputs, its steps."""

import difflib
import graphlib
import importlib
import pkgutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

import components
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
    return _yaml(getattr(importlib.import_module(module), function))


def steps_by_name() -> dict[str, BaseComponent]:
    """Every component by name: `components/<name>.py` holds it."""
    names = sorted(module.name for module in pkgutil.iter_modules(components.__path__))
    found = {n: getattr(importlib.import_module(f"components.{n}"), n, None) for n in names}
    return {name: one for name, one in found.items() if isinstance(one, BaseComponent)}


def compiled_component(name: str) -> str:
    """The specification of a component, as YAML, for `components.load_component_from_file` of KFP
    and for a run of this step alone.
    """
    return _yaml(steps_by_name()[name])


def _yaml(component: BaseComponent) -> str:
    with tempfile.TemporaryDirectory(prefix="compile-") as folder:
        file = Path(folder) / "compiled.yaml"
        compiler.Compiler().compile(component, str(file))
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
    """Names of the steps of a specification, each after those that it waits for.

    Where the exit handler knows all of them, they stand in its order: that of the text, branch by
    branch.
    """
    found = [name for name in _tasks(spec, spec["root"]["dag"]) if name != EXIT_HANDLER]
    for task in spec["root"]["dag"]["tasks"].values():
        if task["taskInfo"]["name"] == EXIT_HANDLER:
            told = task["inputs"]["parameters"]["steps"]["runtimeValue"]["constant"]
            return sorted(found, key=told.index)
    return found


def tasks_of(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task of a specification that runs a component, by its name there (`infnet-train`)."""
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    found = {name: task for dag in dags for name, task in dag["tasks"].items()}
    return {
        name: task
        for name, task in found.items()
        if "dag" not in spec["components"][task["componentRef"]["name"]]
    }


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
