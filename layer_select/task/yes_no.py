"""Is this the next item? Two answers after a question (TALLRec, Bao et al. 2023).

    p(yes) = softmax(z_no, z_yes)_yes      z: logits of the answers' first tokens after the question

Shapes: B samples, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from layer_select.decoder import Decoder
from layer_select.task.batch import TaskBatch


class YesNoObjective:
    """`Objective` of yes/no questions, see the top of the file."""

    def __init__(self, decoder: Decoder, answers: Sequence[int]) -> None:
        """`answers` are the tokens of no and yes."""
        self._decoder, self._answers = decoder, list(answers)

    def scores(self, normed: Float[Tensor, "B T D"]) -> Float[Tensor, "B 2"]:
        """Logits of no and yes."""
        logits = self._decoder.logits(normed[:, -1])[:, self._answers]
        return logits if logits.dtype == torch.float64 else logits.float()

    def loss(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> Float[Tensor, " B"]:
        """Cross-entropy of the two answers."""
        target = batch.target.to(normed.device)
        return torch.nn.functional.cross_entropy(self.scores(normed), target, reduction="none")

    @torch.no_grad()
    def metrics(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> dict[str, Tensor]:
        """`accuracy`: 1 where the right answer is strictly above the other."""
        scores, target = self.scores(normed), batch.target.to(normed.device)[:, None]
        right = scores.gather(1, target) > scores.gather(1, 1 - target)
        return {"accuracy": right[:, 0].double()}

    @torch.no_grad()
    def drawn(
        self, normed: Float[Tensor, "B T D"], batch: TaskBatch, generator: torch.Generator
    ) -> TaskBatch:
        """Answers drawn by p. `generator` is a CPU generator."""
        chances = self.scores(normed).softmax(-1).cpu()
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return replace(batch, target=drawn.to(batch.target.device))
