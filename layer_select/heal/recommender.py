"""A decoder with its item head, and what it says about packed rows: teacher and student alike.

Shapes: R rows, T tokens of a row, D width, V vocabulary, I items, N tokens of all rows without
padding, M ends of titles with a next item.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from layer_select.decoder import Decoder
from layer_select.pretrain.texts import NONE, Rows
from layer_select.task.rating import RatingHead


class Recommender(nn.Module):
    """A causal language model and P (`layer_select.task.head`)."""

    _tokens: Tensor
    _starts: Tensor

    def __init__(
        self,
        decoder: Decoder,
        projection: Float[Tensor, "D D"],
        titles: Sequence[Sequence[int]],
        answers: Sequence[int] = (),
        rating: RatingHead | None = None,
    ) -> None:
        """`titles` are token ids of every item, `answers` those of no and yes; `rating` is the head
        of a task of ratings.
        """
        super().__init__()
        self.model = decoder.model
        self.answers = list(answers)
        self.projection = nn.Parameter(projection.clone())
        self.rating = rating
        lengths = torch.tensor([len(title) for title in titles])
        flat = torch.tensor([token for title in titles for token in title])
        self.register_buffer("_tokens", flat, persistent=False)
        self.register_buffer("_starts", lengths.cumsum(0) - lengths, persistent=False)

    @property
    def decoder(self) -> Decoder:
        """The model as a row of blocks."""
        return Decoder(self.model)

    def vectors(self) -> Float[Tensor, "I D"]:
        """Item vectors: mean title embeddings, as the model applies them, · P."""
        embed: Any = self.model.get_input_embeddings()
        mean = embedding_bag(self._tokens, embed.weight, self._starts, mode="mean").float()
        return (mean * getattr(embed, "embed_scale", 1.0)) @ self.projection

    def see(self, rows: Rows, layers: Sequence[int] = ()) -> "Seen":
        """One pass. Texts of a row do not see each other: positions begin anew with each.

        Args:
            rows: packed texts.
            layers: blocks whose outputs are wanted.
        """
        body: Any = self.model.get_decoder()
        with _noted(body.layers, layers) as after:
            normed = body(
                input_ids=rows.ids,
                attention_mask=_masks(body, rows),
                position_ids=rows.position,
                use_cache=False,
            ).last_hidden_state
        return Seen(self, rows, normed, after)


@dataclass
class Seen:
    """What a recommender made of some rows."""

    recommender: Recommender
    rows: Rows
    normed: Float[Tensor, "R T D"]
    after: Mapping[int, Float[Tensor, "R T D"]]
    """Residual stream after a block."""

    @cached_property
    def logits(self) -> Float[Tensor, "N V"]:
        """Of the next token, at every token."""
        return self.recommender.decoder.logits(self.normed[self.rows.text > 0]).float()

    @cached_property
    def scores(self) -> Float[Tensor, "M I"]:
        """Of the next item, at every end of a title that has one."""
        ends = self.normed[self.rows.items != NONE].float()
        return (ends @ self.recommender.vectors().T).float()


def _masks(body: Any, rows: Rows) -> Any:
    """None: transformers tells the texts of a row apart by their positions. In 5.23 it does so for
    all our families but gpt-oss, whose code does not hand the positions on.
    """
    if body.config.model_type != "gpt_oss":
        return None
    # Only here: it brings torch's compiler, seconds that no other family needs to wait for.
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    how: dict[str, Any] = {
        "config": body.config,
        "inputs_embeds": body.embed_tokens(rows.ids),
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": rows.position,
    }
    return {
        "full_attention": create_causal_mask(**how),
        "sliding_attention": create_sliding_window_causal_mask(**how),
    }


@contextmanager
def _noted(blocks: Any, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    found: dict[int, Tensor] = {}

    def note(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(blocks[layer].register_forward_hook(note(layer)).remove)
        yield found
