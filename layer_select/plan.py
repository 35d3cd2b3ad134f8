"""Plan: which layers of which model stay, and how that was found. `plan.json`.

{"format_version": 1, "model": "sha256:…", "task": "sha256:…", "num_layers": 12, "kept": [0, 3, 11],
 "budget": {"type": "layers", …, "layers": 3}, "strategy": {"type": "greedy_backward", …},
 "history": [{"step": 0, "kept": […], "removed": […], "loss": 5.2, "error": 0.1,
              "increase": 0.3, "increase_error": 0.02,
              "metrics": {"loss": 5.3, "ndcg@10": 0.2}, "evaluations": 1}, …],
 "baselines": {"first_k": {"kept": […], "loss": 6.1, "low": 5.9, "high": 6.3, …}, …},
 "signal": {"found": true, …}, "constraints": ["…"], …}
"""

from typing import Literal

from pydantic import PositiveInt, model_validator

from layer_select.artifact import check_kept, parse
from rayrun import storage
from rayrun.config import Config, ConfigError, Json

FILE = "plan.json"
FORMAT_VERSION = 1


class Plan(Config):
    """Layers to keep of one model."""

    format_version: Literal[1] = FORMAT_VERSION
    model: str
    """Digest of the model that the layers are of."""
    task: str
    """Digest of the task they were chosen for."""
    num_layers: PositiveInt
    """Of the model."""
    kept: tuple[int, ...]
    """Layers that stay, ascending."""
    budget: Json
    """As it was told, and under `layers` how many layers it leaves."""
    strategy: Json
    portable: bool = True
    """Whether the choice obeyed the rule of the family, so that other runtimes compute it exactly
    (`select.portable`)."""
    history: tuple[Json, ...] = ()
    """The steps of the search: `loss` on calibration samples and its `increase` over the whole
    model, each with its standard error, `metrics` on validation samples, `evaluations` of different
    sets so far."""
    stopped: str = ""
    """Why the search ended before its budget."""
    chosen: Json = {}
    """What the kept layers reach on the test samples, with 95 % intervals."""
    baselines: dict[str, Json] = {}
    """The same of other sets: the whole model, first k, every n-th, random ones, the optimum."""
    signal: Json = {}
    """Whether the choice owes anything to the task: `found`, and the differences it rests on."""
    constraints: tuple[str, ...] = ()
    """What the kept layers had to obey."""
    cost: Json = {}
    """Runs of one layer on one micro-batch: done, rebuilt, and without shared prefixes."""

    @model_validator(mode="after")
    def _layers_are_of_the_model(self) -> "Plan":
        check_kept(self.kept, self.num_layers)
        return self

    def write(self, directory: storage.Uri) -> None:
        """Write `plan.json` into `directory`."""
        text = self.model_dump_json(indent=1) + "\n"
        storage.write_bytes(storage.join(directory, FILE), text.encode())

    @classmethod
    def read(cls, uri: storage.Uri, model_digest: str = "") -> "Plan":
        """Read a plan, and refuse that of another model.

        Args:
            uri: output directory of `layer-select select`, or a `plan.json`.
            model_digest: of the model that it must be of; empty: any.

        Raises:
            ConfigError: none there, damaged, of a newer format, or of another model.
        """
        named = str(uri)
        place = named if named.endswith(".json") else storage.join(named, FILE)
        if not storage.exists(place):
            raise ConfigError(
                f"there is no plan at {place}; make one with `layer-select select CONFIG --out DIR`"
            )
        content = storage.read_bytes(place)
        plan = parse(cls, content, place, newest=FORMAT_VERSION, again="select again")
        if model_digest and plan.model != model_digest:
            raise ConfigError(
                f"{place} is a plan of another model: {plan.model}, here it is {model_digest}; "
                "give the model it was made for, or run `layer-select select` with this one"
            )
        return plan
