"""`components/README.md`, made from the components themselves: inputs, outputs, types, defaults."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import docstring_parser
from kfp.dsl.base_component import BaseComponent

from pipelines.compiled import steps_by_name

FOLDER = "`rayrun/pipelines_yaml/components/`"

HEAD = f"""# Components

<!-- Made by `make golden` from the components; do not edit. -->

Steps for Kubeflow Pipelines. Each runs one verb of the command line in our image and passes data as
URIs; each is one lightweight Python component, so KFP's local runners and a backend run the same
file. Compiled, they are in {FOLDER} of the wheel:

```python
from importlib.resources import files
from kfp import components

train = components.load_component_from_text(
    (files("rayrun") / "pipelines_yaml/components/infnet_train.yaml").read_text()
)
```

Turn KFP's cache off for every task (`set_caching_options(False)`): its key holds names, and a
changed log has the same name. The store under `<root>/store` knows content, and where a step runs
is no part of its key.
"""

PASSED_ON = (
    "Its `TaskConfig` takes from the task: {}. What is in *italics* the step's own pod has "
    "too; the rest is for the pods of a Ray cluster only (`$INFNET_TASK_CONFIG` of the verb)."
)


def reference() -> str:
    """The page, as Markdown."""
    return "\n".join([HEAD, *(_section(name, one) for name, one in steps_by_name().items())])


# ---------------------------------------------------------------------------------------------


def _section(name: str, component: BaseComponent) -> str:
    function: Any = getattr(component, "python_func")  # noqa: B009 - of Python components only
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    told = {one.arg_name: " ".join((one.description or "").split()) for one in doc.params}
    found = component.component_spec
    blocks = [f"## {name}", doc.short_description or ""]
    if doc.long_description:
        blocks.append(" ".join(doc.long_description.split()))
    inputs = [["Input", "Type", "Default", "Meaning"]]
    for key, value in (found.inputs or {}).items():
        filled = str(value.type) in ("TaskConfig", "PipelineTaskFinalStatus")
        default = "filled by KFP" if filled else _default(value)
        inputs.append([f"`{key}`", _type(value.type), default, told[key]])
    blocks.append(_table(inputs))
    outputs = [["Output", "Type", "Meaning"]]
    for key, value in (found.outputs or {}).items():
        meaning = told.get(key, "") or _returned(doc, key)
        outputs.append([f"`{key}`", _type(value.type), meaning])
    blocks.append(_table(outputs))
    if found.task_config_passthroughs:
        names = [
            f"*{one.field.name}*" if one.apply_to_task else one.field.name
            for one in found.task_config_passthroughs
        ]
        blocks.append(PASSED_ON.format(", ".join(names)))
    return "\n\n".join(blocks) + "\n"


def _default(value: Any) -> str:
    return f"`{json.dumps(value.default)}`" if value.optional else "required"


def _type(kind: str | Mapping[str, Any]) -> str:
    return f"`{str(kind).partition('@')[0]}`"


RETURNED = {"uri": "URI of what was made, for the next step", "url": "where it answers"}


def _returned(doc: docstring_parser.Docstring, key: str) -> str:
    if key in RETURNED:
        return RETURNED[key]
    said = doc.returns.description if doc.returns else None
    return " ".join((said or "").split())


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
