"""A plain task and plain batches, for whoever scores the small models of `families`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from layer_select.decoder import Decoder
from layer_select.task.batch import TaskBatch
from tests.layer_select.families import VOCABULARY, small_model


class LastToken:
    """Cross-entropy of one target token at the last position, times `scale`."""

    def __init__(self, decoder: Decoder, scale: float = 1.0) -> None:
        self.decoder, self.scale = decoder, scale

    def loss(self, normed: Tensor, batch: TaskBatch) -> Tensor:
        logits = self.decoder.logits(normed[:, -1])
        return self.scale * F.cross_entropy(logits, batch.target, reduction="none")

    def metrics(self, normed: Tensor, batch: TaskBatch) -> dict[str, Tensor]:
        return {"hit": (self.decoder.logits(normed[:, -1]).argmax(-1) == batch.target).double()}

    def drawn(self, normed: Tensor, batch: TaskBatch, generator: torch.Generator) -> TaskBatch:
        chances = self.decoder.logits(normed[:, -1]).softmax(-1)
        target = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return TaskBatch(batch.ids, batch.mask, batch.sample, target)


def small_decoder(family: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model = small_model(family).to(dtype).requires_grad_(False)
    if dtype == torch.float64:  # grouped products of experts know no float64
        model.config._experts_implementation = "eager"
    return Decoder(model)


def batches(sizes: tuple[int, ...] = (3, 2, 3), length: int = 11, seed: int = 0) -> list[TaskBatch]:
    """Micro-batches of random tokens; every second row is padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    found, first = [], 0
    for size in sizes:
        ids = torch.randint(3, VOCABULARY, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1::2, :3] = 0
        target = torch.randint(3, VOCABULARY, (size,), generator=generator)
        found.append(TaskBatch(ids, mask, torch.arange(first, first + size), target))
        first += size
    return found
