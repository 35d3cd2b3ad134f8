"""The first rating head, fitted in closed form or by a convex problem; the decoder stays as it is.

With z = (h − μ) / σ, each number of h_T brought to mean 0 and variance 1 over the N fitted events:

    regression  min_w,b  (1/2N) Σ_n (r_n − 3 − b − w·z_n)² + (λ/2) |w|²        (solved exactly)
    classes     min_W,b  −(1/N) Σ_n log softmax(W z_n + b)_{r_n} + (λ/2) |W|²   (L-BFGS)

The penalty λ is the one of least mean loss on validation events. What is kept reads h_T itself: μ
and σ are folded into weights and bias. The bias is free of the penalty, so that λ → ∞ leaves the
base rate: the mean rating, or the share of each number of stars.

Shapes: N events, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cross_entropy

from layer_select.task.config import LOWEST
from layer_select.task.rating import MIDDLE, STARS, Kind, RatingHead
from rayrun.config import ConfigError

ITERATIONS = 500
"""Of L-BFGS at most; each may look at several points."""
FLAT = 1e-7
"""Largest gradient at which L-BFGS ends."""


@dataclass(frozen=True)
class Events:
    """What a head is fitted or judged on."""

    hidden: Float[Tensor, "N D"]
    rating: Float[Tensor, " N"]


@dataclass(frozen=True)
class Fitted:
    """A head and how it was chosen."""

    head: RatingHead
    ridge: float
    losses: dict[float, float]
    """Mean validation loss by penalty; empty where there are no validation events."""


def fit(kind: Kind, ridges: Sequence[float], training: Events, validation: Events | None) -> Fitted:
    """Fit a head for each penalty and keep the best.

    Args:
        kind: of the head.
        ridges: penalties λ to try; without validation events the first is taken.
        training: what the heads are fitted on.
        validation: what chooses between them.

    Raises:
        ConfigError: fewer than two events, or a hidden state is not finite.
    """
    hidden, rating = training.hidden.double(), training.rating.double()
    if len(hidden) < 2:
        raise ConfigError(
            f"a rating head needs at least 2 training events, found {len(hidden)}; raise "
            "task.fit_samples or take more users"
        )
    if not bool(hidden.isfinite().all()):
        raise ConfigError(
            "the last hidden states must be finite, and some are not: check the weights of the "
            "model, or compute in float32 (score.dtype)"
        )
    mean, spread = hidden.mean(0), hidden.std(0, unbiased=False)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    z = (hidden - mean) / spread
    solve = _ridge if kind == "regression" else _softmax
    found: dict[float, RatingHead] = {}
    for ridge in ridges if validation is not None else ridges[:1]:
        weight, bias = solve(z, rating, ridge)
        weight = weight / spread
        found[ridge] = RatingHead(weight.float(), (bias - weight @ mean).float())
    if validation is None:
        return Fitted(found[ridges[0]], ridges[0], {})
    with torch.no_grad():
        losses = {
            ridge: float(head.losses(validation.hidden.double(), validation.rating.double()).mean())
            for ridge, head in found.items()
        }
    best = min(losses, key=losses.__getitem__)
    return Fitted(found[best], best, losses)


def _ridge(
    z: Float64[Tensor, "N D"], rating: Float64[Tensor, " N"], ridge: float
) -> tuple[Tensor, Tensor]:
    """The normal equations, in whichever of N and D is smaller; z has mean 0, so b is alone."""
    count, width = z.shape
    bias = rating.mean() - MIDDLE
    target = rating - rating.mean()
    if width <= count:
        matrix = z.T @ z / count + ridge * torch.eye(width, dtype=z.dtype)
        weight = torch.linalg.solve(matrix, z.T @ target / count)
    else:
        matrix = z @ z.T / count + ridge * torch.eye(count, dtype=z.dtype)
        weight = z.T @ torch.linalg.solve(matrix, target / count)
    return weight[None], bias[None]


def _softmax(
    z: Float64[Tensor, "N D"], rating: Float64[Tensor, " N"], ridge: float
) -> tuple[Tensor, Tensor]:
    """From the base rates; a thousandth of an event is added to each number of stars, for the
    logarithm of none.
    """
    stars = rating.long() - LOWEST
    shares = torch.bincount(stars, minlength=STARS).double() + 1e-3
    weight = torch.zeros(STARS, z.shape[1], dtype=z.dtype, requires_grad=True)
    bias = (shares / shares.sum()).log().requires_grad_()
    steps = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        tolerance_grad=FLAT,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        steps.zero_grad()
        loss = cross_entropy(z @ weight.T + bias, stars) + ridge / 2 * weight.square().sum()
        loss.backward()
        return loss

    steps.step(closure)  # pyright: ignore[reportArgumentType]
    return weight.detach(), bias.detach()
