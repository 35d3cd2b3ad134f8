"""Centred kernel alignment between what enters and what leaves a layer."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from layer_select.importance.method import Found, Gathered, MethodConfig, Micro, Observer


class Cka(MethodConfig):
    """1 − CKA(x_l, x_{l+1}), with linear CKA(X, Y) = HSIC(X, Y) / √(HSIC(X, X) HSIC(Y, Y)).

    CKA: Kornblith et al. 2019, arXiv:1905.00414; invariant to rotation and scale. HSIC is estimated
    without bias on each micro-batch (Song et al. 2012) and summed over them (Nguyen et al. 2021,
    arXiv:2010.15327), so that few tokens in many dimensions do not count as alike. All pairs are in
    `pairs.cka`. The standard error is the jackknife's over micro-batches.
    """

    type: Literal["cka"] = "cka"
    tokens: Annotated[int, Field(ge=4)] = 256
    """Real tokens of a micro-batch that are compared, at even distances: the cost is quadratic."""

    def observer(self) -> Observer:
        """A fresh observer."""
        return _CkaObserver(self)


class _CkaObserver(Observer):
    def __init__(self, config: Cka) -> None:
        self.config = config

    def states(self, micro: Micro, states: Sequence[Float[Tensor, "B T D"]]) -> None:
        real = micro.mask.bool().flatten().nonzero()[:, 0]
        count = min(self.config.tokens, len(real))
        chosen = real[torch.linspace(0, len(real) - 1, count, device=real.device).round().long()]
        rows = torch.stack([state.flatten(0, 1)[chosen].double() for state in states])
        micro.totals["cka"] = hsic(rows).cpu()

    def found(self, gathered: Gathered) -> dict[str, Found]:
        parts = gathered.totals["cka"]
        matrix = alignment(parts.sum(0))
        scores = 1 - matrix.diagonal(1)
        errors = torch.zeros_like(scores)
        if (count := len(parts)) > 1:
            without = torch.stack([alignment(parts.sum(0) - part).diagonal(1) for part in parts])
            spread = (without - without.mean(0)).square().sum(0)
            errors = (spread * (count - 1) / count).sqrt()
        return {"cka": Found(scores, errors, pairs={"cka": matrix})}


def hsic(rows: Float[Tensor, "S n D"]) -> Float[Tensor, "S S"]:
    """The unbiased estimate of HSIC between each two of S representations of the same n tokens.

    With K̃, L̃ the Gram matrices whose diagonals are set to 0,
    HSIC = (tr K̃L̃ + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK̃L̃1) / (n(n−3)).

    Raises:
        ValueError: fewer than 4 tokens.
    """
    n = rows.shape[1]
    if n < 4:
        raise ValueError(
            f"cka needs at least 4 real tokens in every micro-batch, found {n}; raise "
            "task.micro_batch"
        )
    # Centred first: the estimate does not change, and large common parts do not cost digits.
    rows = rows - rows.mean(1, keepdim=True)
    gram = rows @ rows.mT
    gram = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    sums = gram.sum(2)
    traces = gram.flatten(1) @ gram.flatten(1).T
    totals = sums.sum(1)
    common = totals[:, None] * totals / ((n - 1) * (n - 2))
    return (traces + common - 2 / (n - 2) * (sums @ sums.T)) / (n * (n - 3))


def alignment(hsics: Float[Tensor, "S S"]) -> Float[Tensor, "S S"]:
    """CKA from the HSICs of all pairs; its estimate may leave [0, 1] by noise, and is clamped.

    Raises:
        ValueError: a representation does not vary over the tokens.
    """
    own = hsics.diagonal()
    if bool((own <= 0).any()):
        raise ValueError(
            "cka needs hidden states that vary over tokens; those at position(s) "
            f"{(own <= 0).nonzero()[:, 0].tolist()} of the residual stream do not, over the tokens "
            "compared: raise cka.tokens or the number of calibration samples"
        )
    return (hsics / (own[:, None] * own).sqrt()).clamp(0, 1)
