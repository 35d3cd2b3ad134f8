"""Next item by a head: last hidden state · item vectors, over the full catalogue.

    s_i = h_T · v_i      v_i = (1/n_i) Σ_{t ∈ title i} E[t] · P      l = −log softmax(s)_target

E is the input embedding as the model applies it, P a D×D projection trained with the model and then
fixed (identity where there is none): items never seen in training have a vector too, and no
catalogue is encoded again when layers are left out. Compare E4SRec and SLMRec (spec of the head),
whose item vectors are tables by id.

Shapes: B samples, T tokens, D width, I items.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from layer_select.task.batch import TaskBatch
from layer_select.task.ranking import rank_metrics, ranks
from rayrun.config import ConfigError

ITEM_HEAD = "item_head.safetensors"
PROJECTION = "projection"
ITEMS_AT_ONCE = 4096


def read_projection(content: bytes, width: int) -> Float[Tensor, "D D"]:
    """P of an `item_head.safetensors`.

    Raises:
        ConfigError: damaged, without `projection`, or of another width.
    """
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ConfigError(
            f"{ITEM_HEAD} is damaged ({error}); make the model again with pretrain-tiny, or remove "
            "the file: item vectors are then mean embeddings alone"
        ) from None
    if PROJECTION not in tensors or tensors[PROJECTION].shape != (width, width):
        held = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise ConfigError(
            f"{ITEM_HEAD} must hold {PROJECTION!r} of shape [{width}, {width}], the model's width; "
            f"it holds {held}. It belongs to another model"
        )
    return tensors[PROJECTION]


def written_projection(projection: Float[Tensor, "D D"]) -> bytes:
    """`item_head.safetensors` of P."""
    return save({PROJECTION: projection.detach().cpu().contiguous()})


def mean_embeddings(embed: Any, titles: Sequence[Sequence[int]]) -> Float[Tensor, "I D"]:
    """Mean of the embedded tokens of every title, in float32 or better; differentiable."""
    device = embed.weight.device
    parts: list[Tensor] = []
    for start in range(0, len(titles), ITEMS_AT_ONCE):
        some = titles[start : start + ITEMS_AT_ONCE]
        counts = torch.tensor([len(t) for t in some], device=device)
        flat = torch.tensor([token for t in some for token in t], device=device)
        embedded = embed(flat)
        if embedded.dtype != torch.float64:
            embedded = embedded.float()
        owner = torch.repeat_interleave(torch.arange(len(some), device=device), counts)
        sums = embedded.new_zeros(len(some), embedded.shape[1]).index_add(0, owner, embedded)
        parts.append(sums / counts[:, None])
    return torch.cat(parts)


class HeadObjective:
    """`Objective` of the head, see the top of the file."""

    def __init__(self, vectors: Float[Tensor, "I D"]) -> None:
        self.vectors = vectors

    def scores(self, normed: Float[Tensor, "B T D"]) -> Float[Tensor, "B I"]:
        """Of every item of the catalogue."""
        last = normed[:, -1]
        last = last if last.dtype == torch.float64 else last.float()
        return last @ self.vectors.to(last).T

    def loss(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> Float[Tensor, " B"]:
        """Cross-entropy over the catalogue."""
        target = batch.target.to(normed.device)
        return torch.nn.functional.cross_entropy(self.scores(normed), target, reduction="none")

    @torch.no_grad()
    def metrics(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> dict[str, Tensor]:
        """`ndcg@5`, `ndcg@10`, `mrr`, `hr@5`, `hr@10`, ties against us."""
        return rank_metrics(ranks(self.scores(normed), batch.target.to(normed.device)))

    @torch.no_grad()
    def drawn(
        self, normed: Float[Tensor, "B T D"], batch: TaskBatch, generator: torch.Generator
    ) -> TaskBatch:
        """Items drawn by softmax(s). `generator` is a CPU generator."""
        chances = self.scores(normed).softmax(-1).cpu()
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return replace(batch, target=drawn.to(batch.target.device))
