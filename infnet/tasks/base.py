"""What a task type must offer. One file per type; the union in `__init__` is the registry."""

from jaxtyping import Bool, Float
from pydantic import model_validator

from infnet.tasks.tensor import Tensor
from rayrun.config import Config


class Label(Config):
    """Where a label comes from: a column of the raw log, as it is or compared with a number."""

    column: str
    """Column of the raw log. Null means: not observed."""
    above: float | None = None
    """Binary: 1 where the column is greater than this (`rating > 3`). Absent: the column holds 0
    and 1."""
    observed_when: str = ""
    """Column that is non-zero where the label is known. Empty: known wherever it is not null."""
    scale: float = 1.0
    """Amounts: the label is the column times this (0.001 turns milliseconds into seconds)."""


class BaseTask(Config):
    """A task: label, logits, loss, prediction. Weighted sums of the losses train the model."""

    label: str | Label
    """Column name, or a description of the label."""
    weight: float = 1.0
    """λ of this task in L = Σ λ_i L_i."""

    @model_validator(mode="after")
    def _weight_is_positive(self) -> "BaseTask":
        if self.weight <= 0:
            raise ValueError(f"weight must be above 0, found {self.weight}")
        return self

    @property
    def source(self) -> Label:
        """The label's description, also where only a column name was given."""
        return self.label if isinstance(self.label, Label) else Label(column=self.label)

    @property
    def num_logits(self) -> int:
        """Numbers the head gives per row."""
        return 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of this type, the first being the headline."""
        raise NotImplementedError

    @property
    def label_range(self) -> tuple[float, float]:
        """Labels outside are bad rows."""
        raise NotImplementedError

    @property
    def parent(self) -> str:
        """Another task this one is conditional on (see `compose`); empty: none."""
        return ""

    def compose(
        self, own: Float[Tensor, "B O"], parent: Float[Tensor, "B _"]
    ) -> Float[Tensor, "B O"]:
        """Logits of this task from what its head says and the parent's logits, if it has one."""
        raise NotImplementedError

    def loss(
        self, logits: Float[Tensor, "B O"], labels: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Loss of each row, not averaged. Rows whose label is unknown are removed by the caller."""
        raise NotImplementedError

    def predict(self, logits: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        """The prediction a user sees: a probability for binary tasks, an amount for regressions."""
        raise NotImplementedError


def observed_losses(
    losses: Float[Tensor, " B"], observed: Bool[Tensor, " B"], weight: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Weighted sum over observed rows; the caller divides by the global weight of observed rows.

    `where` and not a product: a loss that is not finite at an unobserved label must not leak.
    """
    return (losses.where(observed, losses.new_zeros(())) * weight).sum()
