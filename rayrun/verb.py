"""What a product says of its verbs: how each is called, run, and kept in a store."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Target = str | Callable[..., Any]
"""A function or class, or where to import it from: `infnet.train.run:train`."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """An argument of one verb, beside those that all verbs share."""

    name: str
    """Keyword of the run function; `--name` on the command line, or a word if `positional`."""
    help: str
    type: Callable[[str], Any] = str
    default: Any = None
    choices: Sequence[str] | None = None
    required: bool = False
    positional: bool = False
    place: bool = False
    """It says where something is: it is no part of the key in a store, `Verb.reads` adds what is
    found there."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of a product."""

    name: str
    help: str
    """One line for the list of verbs."""
    run: Target
    """`run(config, out, **flags) -> Result`; without a config class, `run(out, **flags)`."""
    config: Target | None = None
    """The configuration class. None: the verb takes no CONFIG (`init FILE`)."""
    plan: Target | None = None
    """`plan(config, out, **flags) -> str`: what `--dry-run` prints. It writes nothing."""
    flags: tuple[Flag, ...] = ()
    out: str = ""
    """Default of `--out` for a verb without CONFIG; others write to `runs/<config name>/<verb>`."""
    store: bool = False
    """Its result follows from what it reads, and may be kept with `--store`."""
    sections: tuple[str, ...] | None = None
    """Keys of the configuration that decide the result, `model` or `evaluate.batch_size`. None: all
    that are digested."""
    inputs: tuple[str, ...] | None = None
    """Names under `inputs:` that the verb reads. None: all that are set."""
    here: bool = False
    """It runs where it is typed, even where `compute` names a dashboard that takes jobs."""
    service: bool = False
    """With `compute: {type: kuberay}` it makes a RayService from here, where others become jobs."""
    reads: Target | None = None
    """`reads(config, **flags) -> dict`: digests of what is read beside the inputs, by name. A name
    that also stands under `inputs` of the manifest must have the same digest there."""


class Ended(Exception):
    """A verb that ran as a job elsewhere ended there with this exit code, and has said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the job ended with exit code {exit_code}")
        self.exit_code = exit_code


def resolve(target: Target) -> Any:
    """The function or class a target names."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
