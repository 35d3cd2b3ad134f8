"""How many stars? A rating of 1 to 5 from the last hidden state, by one of two linear heads.

    regression  ŷ = 3 + h_T · w + b               l = (r − ŷ)² / 2
    classes     p = softmax(h_T Wᵀ + b), ŷ = Σ_r r p_r     l = −log p_r

l of the regression is the negative log-likelihood of a normal of unit variance without its constant
log(2π)/2. Metrics clip ŷ to [1, 5]; the loss does not, so that its gradient never vanishes.

Shapes: B samples, T tokens, D width, K rows of the head (1 or 5).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from layer_select.task.batch import TaskBatch
from layer_select.task.config import HIGHEST, LOWEST
from rayrun.config import ConfigError

RATING_HEAD = "rating_head.safetensors"
WEIGHT, BIAS = "weight", "bias"
MIDDLE, STARS = 3, HIGHEST - LOWEST + 1

Kind = Literal["regression", "classes"]
ROWS: dict[Kind, int] = {"regression": 1, "classes": STARS}
"""K of each kind."""


class RatingHead(nn.Module):
    """Either head as a module: what `fit-head` fits and `heal` trains on."""

    def __init__(self, weight: Float[Tensor, "K D"], bias: Float[Tensor, " K"]) -> None:
        """One row: regression; five: classes of 1 to 5 stars."""
        super().__init__()
        assert len(weight) in ROWS.values()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())

    @property
    def kind(self) -> Kind:
        """Told by the number of rows."""
        return "regression" if len(self.weight) == 1 else "classes"

    def outputs(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """ŷ of the regression, or the logits of 1 to 5 stars; in float32 or better."""
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        found = hidden @ self.weight.to(hidden).T + self.bias.to(hidden)
        return found + MIDDLE if self.kind == "regression" else found

    def losses(
        self, hidden: Float[Tensor, "B D"], rating: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Loss of each sample, see the top of the file; differentiable in `hidden` and the head."""
        found = self.outputs(hidden)
        if self.kind == "regression":
            return (rating.to(found) - found[:, 0]).square() / 2
        return cross_entropy(found, rating.long() - LOWEST, reduction="none")

    @torch.no_grad()
    def metrics(
        self, hidden: Float[Tensor, "B D"], rating: Float[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """`squared_error` and `absolute_error` of the clipped ŷ, `accuracy` of the nearest number
        of stars or the class strictly on top. `table_metrics` makes RMSE and MAE of their means.
        """
        outputs = self.outputs(hidden).double()
        error = rating.double() - _expected(outputs).clamp(LOWEST, HIGHEST)
        if self.kind == "regression":
            right = error.abs() < 0.5
        else:
            own = outputs.gather(1, rating.long()[:, None] - LOWEST)
            right = (~(outputs < own)).sum(1) == 1
        return {
            "squared_error": error.square(),
            "absolute_error": error.abs(),
            "accuracy": right.double(),
        }

    @torch.no_grad()
    def stars(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The prediction ŷ, clipped to [1, 5]."""
        return _expected(self.outputs(hidden)).clamp(LOWEST, HIGHEST)

    @classmethod
    def read(cls, content: bytes | None, kind: Kind, width: int, where: str) -> "RatingHead":
        """The head of a `rating_head.safetensors`.

        Args:
            content: of the file; None where there is none.
            kind: that the task asks for.
            width: D of the model.
            where: how messages call the model.

        Raises:
            ConfigError: there is none, it is damaged, or it is of another kind or width.
        """
        if content is None:
            raise ConfigError(
                f"task.type rating needs {RATING_HEAD}, and {where} has none: an untrained head "
                "measures nothing. Fit one with `layer-select fit-head CONFIG --out DIR` and give "
                "--set inputs.rating_head=DIR"
            )
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise ConfigError(
                f"{RATING_HEAD} of {where} is damaged ({error}); make it again with `layer-select "
                "fit-head`"
            ) from None
        rows = ROWS[kind]
        shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
        if shapes != {BIAS: [rows], WEIGHT: [rows, width]}:
            raise ConfigError(
                f"{RATING_HEAD} of {where} must hold {WEIGHT!r} [{rows}, {width}] and {BIAS!r} "
                f"[{rows}] for task.head {kind}, found {shapes}; make it again with `layer-select "
                "fit-head`, or set task.head to what it was fitted as"
            )
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ConfigError(
                f"{RATING_HEAD} of {where} holds a number that is not finite; make it again with "
                "`layer-select fit-head`"
            )
        return cls(tensors[WEIGHT], tensors[BIAS])

    def written(self) -> bytes:
        """`rating_head.safetensors`."""
        held = {WEIGHT: self.weight, BIAS: self.bias}
        return save({name: t.detach().cpu().contiguous() for name, t in held.items()})


class RatingObjective:
    """`Objective` of ratings, see the top of the file."""

    def __init__(self, head: RatingHead) -> None:
        self.head = head.requires_grad_(False)

    def loss(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> Float[Tensor, " B"]:
        """Half the squared error of a regression, cross-entropy of classes."""
        return self.head.losses(normed[:, -1], _rating(batch, normed))

    @torch.no_grad()
    def metrics(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> dict[str, Tensor]:
        """As `RatingHead.metrics`."""
        return self.head.metrics(normed[:, -1], _rating(batch, normed))

    @torch.no_grad()
    def drawn(
        self, normed: Float[Tensor, "B T D"], batch: TaskBatch, generator: torch.Generator
    ) -> TaskBatch:
        """Ratings drawn from N(ŷ, 1), or by p. `generator` is a CPU generator."""
        outputs = self.head.outputs(normed[:, -1]).cpu()
        if self.head.kind == "regression":
            noise = torch.randn(len(outputs), generator=generator, dtype=outputs.dtype)
            drawn = outputs[:, 0] + noise
        else:
            chosen = torch.multinomial(outputs.softmax(-1), 1, generator=generator)[:, 0]
            drawn = (chosen + LOWEST).to(outputs)
        return replace(batch, rating=drawn.to(batch.ids.device))


def table_metrics(means: Mapping[str, float]) -> dict[str, float | None]:
    """RMSE = √(mean squared error), MAE and accuracy from the means over samples."""
    return {
        "rmse": math.sqrt(means["squared_error"]),
        "mae": means["absolute_error"],
        "accuracy": means["accuracy"],
    }


def _expected(outputs: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    return outputs.softmax(-1) @ torch.arange(LOWEST, HIGHEST + 1).to(outputs)


def _rating(batch: TaskBatch, normed: Tensor) -> Float[Tensor, " B"]:
    assert batch.rating is not None
    return batch.rating.to(normed.device)
