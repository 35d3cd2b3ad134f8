"""Whole-file configuration of the `layer-select` verbs, read from the top like its YAML."""

from typing import Annotated, Literal

from pydantic import NonNegativeInt, model_validator

from layer_select.compact.config import Compact
from layer_select.evaluate.config import Evaluate
from layer_select.export.config import Embed, Export
from layer_select.heal.config import Heal
from layer_select.importance import (
    Angular,
    AttentionConcentration,
    BlockInfluence,
    Cka,
    Fisher,
    GateTaylor,
    GradientNorm,
    Hybrid,
    KernelShap,
    LeaveOneOut,
    Method,
    Random,
    Shapley,
    Taylor,
)
from layer_select.importance.execution import Execution, Whole
from layer_select.pretrain.config import Pretrain
from layer_select.selection import Select
from layer_select.serve.config import RecommenderServe
from layer_select.sources import ModelSource
from layer_select.task.config import HeadTask, SequenceData, Task
from rayrun.config import Config, Place
from rayrun.ray.compute import Compute

ALL_METHODS: tuple[Method, ...] = (
    Fisher(),
    Fisher(monte_carlo=True),
    GradientNorm(),
    Taylor(),
    GateTaylor(),
    AttentionConcentration(),
    BlockInfluence(),
    Angular(),
    Cka(),
    LeaveOneOut(),
    Shapley(),
    KernelShap(),
    Random(),
    Hybrid(),
    Hybrid(fit="leave_one_out"),
)


class Score(Config):
    """What `layer-select score` measures, and how it runs."""

    methods: tuple[Method, ...] = ALL_METHODS
    """In this order; a hybrid reads the scores of the methods before it."""
    execution: Execution = Whole()
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of weights and activations; sums over samples are float64 always."""
    bootstrap: NonNegativeInt = 1000
    """Replicates behind the intervals of the report."""
    seed: int = 0
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _keys_differ(self) -> "Score":
        keys = [key for method in self.methods for key in method.keys]
        if not keys:
            raise ValueError("methods: at least one method is required")
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"methods must give each score once, found twice: {', '.join(twice)}")
        return self


class Inputs(Config):
    """Where a verb finds what an earlier verb made. Never part of the digest."""

    model: Annotated[str, Place] = ""
    """A Hugging Face folder, a .gguf file, or `ollama:NAME`; wins over `model:`."""
    scores: Annotated[str, Place] = ""
    """Output of `layer-select score`."""
    plan: Annotated[str, Place] = ""
    """Output of `layer-select select`."""
    student: Annotated[str, Place] = ""
    """A smaller model: output of `layer-select compact` or `heal`."""
    bundle: Annotated[str, Place] = ""
    """Output of `layer-select export`."""
    rating_head: Annotated[str, Place] = ""
    """Output of `layer-select fit-head`, for the full model; wins over a file beside it."""


class LayerSelectConfig(Config):
    """One run of layer selection, from a language model and a task to the layers worth keeping."""

    name: str
    model: ModelSource | None = None
    """The language model; absent, and without `inputs.model`: the one that `pretrain:` makes."""
    data: SequenceData
    task: Task = HeadTask()
    pretrain: Pretrain | None = None
    score: Score = Score()
    select: Select = Select()
    compact: Compact = Compact()
    heal: Heal = Heal()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    embed: Embed = Embed()
    serve: Annotated[RecommenderServe, Place] = RecommenderServe()
    """Where and how the model is served; it changes no result."""
    inputs: Inputs = Inputs()
    compute: Compute
    cache: Annotated[str, Place] = ""
    """Where a model made by `pretrain:` is kept, by the content it is made from. Empty: beside the
    run."""
