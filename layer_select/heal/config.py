"""The `heal:` section: what a student begins as, what it learns from, and at what cost."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from layer_select.heal.objectives import Hidden, Kl, Objective, Ranking, TaskLoss
from layer_select.pretrain.config import check_heads
from rayrun.config import Config


class Compact(Config):
    """The kept layers with their weights: `inputs.student`, or `inputs.plan` of the model."""

    type: Literal["compact"] = "compact"


class Scratch(Config):
    """The architecture of the kept layers with random weights: what pruning must beat."""

    type: Literal["scratch"] = "scratch"


class Narrow(Config):
    """A decoder of the Llama type and of another width, random at the start: classical distillation
    (Hinton et al. 2015). Tokenizer and vocabulary are the full model's.
    """

    type: Literal["narrow"] = "narrow"
    layers: PositiveInt = 4
    width: PositiveInt = 512
    feed_forward: PositiveInt = 1024
    heads: PositiveInt = 8
    key_value_heads: PositiveInt = 8

    @model_validator(mode="after")
    def _heads_divide(self) -> "Narrow":
        check_heads(self.width, self.heads, self.key_value_heads)
        return self


Student = Annotated[Compact | Scratch | Narrow, Field(discriminator="type")]


class Full(Config):
    """Every weight is trained."""

    type: Literal["full"] = "full"


class Lora(Config):
    """Low-rank changes of every linear map and expert of the layers, merged into them at the end
    (Hu et al. 2022, arXiv:2106.09685). P of the item head is trained whole.
    """

    type: Literal["lora"] = "lora"
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """The change is alpha / rank · B A."""


Train = Annotated[Full | Lora, Field(discriminator="type")]


class Cached(Config):
    """The teacher runs once over every row; what it says is kept on disk beside the run's state."""

    type: Literal["cached"] = "cached"
    cuts: PositiveInt = 1
    """Histories are cut into rows anew in each of so many epochs, which then come again."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of what is kept."""


class Online(Config):
    """The teacher runs beside the student, on rows that are cut anew in every epoch."""

    type: Literal["online"] = "online"


Teacher = Annotated[Cached | Online, Field(discriminator="type")]


class Heal(Config):
    """How a student is healed."""

    student: Student = Compact()
    train: Train = Full()
    objectives: tuple[Objective, ...] = (TaskLoss(), Kl(), Ranking(), Hidden())
    """What is learnt; the loss is the sum of weight · mean over its own targets."""
    teacher: Teacher = Cached()
    stages: tuple[PositiveInt, ...] = ()
    """Numbers of layers, falling: at each the layers are chosen again among those that are left
    (`select:`), and healed. Empty: once, with the layers of `inputs.student` or `inputs.plan`."""
    epochs: PositiveInt = 4
    steps: NonNegativeInt = 0
    """Optimizer steps; 0: those of `epochs`, else exactly so many, however many epochs."""
    row_tokens: PositiveInt = 256
    """Texts are packed into rows of this many tokens; they do not see each other."""
    batch_rows: PositiveInt = 8
    """Rows of one optimizer step over all workers."""
    micro_rows: NonNegativeInt = 0
    """Rows of one pass of one worker; 0: its share of the batch. Halved where a GPU's memory does
    not suffice."""
    lr: PositiveFloat = 1e-3
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises; then it falls as a cosine to a tenth."""
    weight_decay: NonNegativeFloat = 0.05
    clip_norm: NonNegativeFloat = 1.0
    event_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Each event of a training text is left out of it with this probability."""
    yes_no_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the training texts that end in a yes/no question and its answer; for `task.type:
    yes_no`, whose loss is that of the answers, it must be above 0."""
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 1 shares the optimizer's state out among the workers, 2 gradients too, 3
    weights too. 0: none of it."""
    checkpoint_every_steps: PositiveInt = 200
    max_failures: NonNegativeInt = 2
    bootstrap: int = Field(default=1000, ge=100)
    """Replicates behind the intervals."""
    seed: int = 0

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "Heal":
        if not any(objective.weight for objective in self.objectives):
            raise ValueError("objectives: at least one with a weight above 0 is required")
        counted = Counter(objective.type for objective in self.objectives)
        if twice := sorted(name for name, count in counted.items() if count > 1):
            raise ValueError(f"objectives must name each once, found twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _stages_fall(self) -> "Heal":
        if list(self.stages) != sorted(set(self.stages), reverse=True):
            raise ValueError(f"stages must fall from one to the next, found {list(self.stages)}")
        if self.stages and self.student.type != "compact":
            raise ValueError(
                "stages choose among layers that are there, so student must be of type compact, "
                f"found {self.student.type}"
            )
        return self

    @model_validator(mode="after")
    def _widths_match(self) -> "Heal":
        if self.student.type == "narrow" and any(
            o.type == "hidden" and o.weight for o in self.objectives
        ):
            raise ValueError(
                "objectives: hidden compares states of one width, a narrow student has another; "
                "leave it out: objectives: [{type: task}, {type: kl}, {type: ranking}]"
            )
        return self
