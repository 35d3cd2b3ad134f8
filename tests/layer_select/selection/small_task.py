"""A question to a small decoder: which token comes next? Few layers, five samples."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig

from layer_select.decoder import Decoder
from layer_select.task.batch import TaskBatch
from tests.layer_select.families import SIZES, VOCABULARY, small_batch, small_model


class NextToken:
    """Cross-entropy and rank of a target token after the last position."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def loss(self, normed: Tensor, batch: TaskBatch) -> Tensor:
        logits = self._decoder.logits(normed[:, -1])
        return F.cross_entropy(logits, batch.target, reduction="none")

    def metrics(self, normed: Tensor, batch: TaskBatch) -> dict[str, Tensor]:
        logits = self._decoder.logits(normed[:, -1])
        own = logits.gather(1, batch.target[:, None])
        rank = (logits > own).sum(1) + 1
        return {"mrr": 1 / rank, "hr@10": (rank <= 10).double()}


def deep_decoder(layers: int = 12, seed: int = 0) -> Decoder:
    """A random Llama whose layers change the stream enough for every choice to matter."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": layers}, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return Decoder(model.double())


def family_decoder(family: str) -> Decoder:
    return Decoder(small_model(family).double())


def batches(samples: int = 5, of: int = 2, length: int = 7, seed: int = 0) -> list[TaskBatch]:
    """Micro-batches of `of` samples; ids come in another order than the samples."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = small_batch(seed, rows=samples, length=length)
    target = torch.randint(3, VOCABULARY, (samples,), generator=generator)
    numbers = torch.randperm(samples, generator=generator)
    return [
        TaskBatch(ids[at], mask[at], numbers[at], target[at])
        for at in (slice(begin, begin + of) for begin in range(0, samples, of))
    ]


@torch.no_grad()
def loss_of_a_cut_model(decoder: Decoder, kept: Sequence[int], batch: TaskBatch) -> Tensor:
    """The reference: Hugging Face's own forward of the model without the other layers, row by row,
    and without padding.
    """
    model = decoder.model
    model.model.layers = torch.nn.ModuleList(decoder.blocks[i] for i in kept)
    model.config.num_hidden_layers = len(kept)
    rows = [ids[mask == 1][None] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    last = [model(input_ids=row, use_cache=False).logits[:, -1] for row in rows]
    model.model.layers = decoder.blocks
    model.config.num_hidden_layers = len(decoder.blocks)
    return F.cross_entropy(torch.cat(last), batch.target, reduction="none")
