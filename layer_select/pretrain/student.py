"""The decoder that is trained, with its item head, and the loss of packed rows.

    l = w_item · CE(h_end · (V P)ᵀ) + w_token · CE(next token) + w_answer · CE(yes or no)

V: mean title embeddings, P: D×D, identity at the start. Each CE is a mean over its own targets of
the whole batch, so that the loss does not depend on how rows are shared out among workers.

Shapes: R rows, T tokens, D width, I items.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding_bag

from layer_select.pretrain.config import Pretrain
from layer_select.pretrain.texts import NONE, Rows
from layer_select.sources.skeleton import BUILDING
from layer_select.training.learner import Learner

LOSSES = ("next_item", "next_token", "answer")


class Student(Learner):
    """A Llama-type decoder and P."""

    names = LOSSES
    _tokens: Tensor
    _starts: Tensor

    def __init__(
        self,
        config: Pretrain,
        *,
        vocab_size: int,
        positions: int,
        titles: Sequence[Sequence[int]],
        answers: Sequence[int],
    ) -> None:
        """Parameters by `config.seed`; `titles` and `answers` are token ids."""
        from transformers.models.llama import LlamaConfig, LlamaForCausalLM

        super().__init__()
        shape = config.model
        with BUILDING:
            torch.manual_seed(config.seed)
            self.model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocab_size,
                    hidden_size=shape.width,
                    intermediate_size=shape.feed_forward,
                    num_hidden_layers=shape.layers,
                    num_attention_heads=shape.heads,
                    num_key_value_heads=shape.key_value_heads,
                    max_position_embeddings=positions,
                    bos_token_id=0,
                    eos_token_id=0,
                    pad_token_id=0,
                    tie_word_embeddings=False,
                )
            )
            self.model.set_attn_implementation("sdpa")
            embed: Any = self.model.get_input_embeddings()
            with torch.no_grad():
                # Rows of unit length, and a P that gives items scores of a spread near 1 at once:
                # from the usual .02, the head needs hundreds of steps before it tells items apart.
                embed.weight.normal_(std=shape.width**-0.5)
        self.projection = nn.Parameter(2.0 * torch.eye(shape.width))
        self._answers, self._weights = list(answers), config.weights
        lengths = torch.tensor([len(title) for title in titles])
        flat = torch.tensor([token for title in titles for token in title])
        self.register_buffer("_tokens", flat, persistent=False)
        self.register_buffer("_starts", lengths.cumsum(0) - lengths, persistent=False)

    def vectors(self) -> Float[Tensor, "I D"]:
        """Item vectors V P."""
        embed: Any = self.model.get_input_embeddings()
        mean = embedding_bag(self._tokens, embed.weight, self._starts, mode="mean")
        return mean @ self.projection

    def counts(self, batch: Rows) -> Float[Tensor, " 3"]:
        """See `Learner`."""
        return target_counts(batch)

    def decayed(self) -> Iterable[nn.Parameter]:
        """Matrices of the blocks alone: not embeddings, norms, P."""
        body: Any = self.model.get_decoder()
        return [p for p in body.layers.parameters() if p.dim() > 1]

    def losses(self, rows: Rows, counts: Float[Tensor, " 3"]) -> Float[Tensor, " 3"]:
        """This worker's part of the three means; `counts` are the targets of the whole batch."""
        hidden = self.model.get_decoder()(
            input_ids=rows.ids,
            attention_mask=rows.attention(),
            position_ids=rows.position,
            use_cache=False,
        ).last_hidden_state
        tokens = rows.tokens()
        sums = [
            self._sum(hidden, rows.items, lambda h: h @ self.vectors().T),
            self._sum(hidden, tokens, self.model.lm_head),
            self._sum(hidden, rows.answers, lambda h: self.model.lm_head(h)[:, self._answers]),
        ]
        return torch.stack(sums) / counts.clamp(min=1)

    def weighted(self, losses: Float[Tensor, " 3"]) -> Float[Tensor, ""]:
        """The one loss."""
        weights = self._weights
        by = torch.tensor([weights.next_item, weights.next_token, weights.answer])
        return (losses * by.to(losses)).sum()

    @staticmethod
    def _sum(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        there = targets != NONE
        return cross_entropy(head(hidden[there]).float(), targets[there], reduction="sum")


def target_counts(rows: Rows) -> Float[Tensor, " 3"]:
    """Targets of the three losses in these rows."""
    found = [(t != NONE).sum() for t in (rows.items, rows.tokens(), rows.answers)]
    return torch.stack(found).float()
