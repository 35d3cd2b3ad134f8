"""The next title, token by token: l = −Σ_s log p(y_s | prompt, y_<s), the title's end included.

Shapes: B samples, T tokens, S target tokens, D width, V vocabulary.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from layer_select.decoder import Decoder
from layer_select.task.batch import TaskBatch


class LikelihoodObjective:
    """`Objective` of the next title's tokens, see the top of the file."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def log_probabilities(
        self, normed: Float[Tensor, "B T D"], batch: TaskBatch
    ) -> Float[Tensor, "B S V"]:
        """Of every token at the positions that predict the target's tokens."""
        assert batch.target_ids is not None
        length = batch.target_ids.shape[1]
        logits = self._decoder.logits(normed[:, -length - 1 : -1])
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)

    def _tokens(self, normed: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor, Tensor]:
        assert batch.target_ids is not None
        assert batch.target_valid is not None
        everything = self.log_probabilities(normed, batch)
        ids, valid = (t.to(normed.device) for t in (batch.target_ids, batch.target_valid))
        return everything, everything.gather(2, ids[..., None])[..., 0], valid

    def loss(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> Float[Tensor, " B"]:
        """Negative log-likelihood of the title."""
        _, own, valid = self._tokens(normed, batch)
        return -(own * valid).sum(1)

    @torch.no_grad()
    def metrics(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> dict[str, Tensor]:
        """`token_nll`: mean over the title's tokens; `token_accuracy`: share strictly on top."""
        everything, own, valid = self._tokens(normed, batch)
        count = valid.sum(1).double()
        first = (~(everything < own[..., None])).sum(2) == 1
        return {
            "token_nll": -(own.double() * valid).sum(1) / count,
            "token_accuracy": (first & valid).sum(1) / count,
        }

    @torch.no_grad()
    def drawn(
        self, normed: Float[Tensor, "B T D"], batch: TaskBatch, generator: torch.Generator
    ) -> TaskBatch:
        """Every target token drawn from p at its position, the text before it as it stands."""
        assert batch.target_ids is not None
        assert batch.target_valid is not None
        chances = self.log_probabilities(normed, batch).exp().cpu()
        drawn = torch.multinomial(chances.flatten(0, 1), 1, generator=generator)
        ids = drawn.view(batch.target_ids.shape).to(batch.target_ids.device)
        return replace(batch, target_ids=torch.where(batch.target_valid, ids, batch.target_ids))
