"""From a checkpoint to a decoder: whole, or one block's weights at a time.

The module starts without weights (`skeleton`), every parameter is then read by its name, and what
was not read is found by where it still lies. So no value in a decoder is ever an initialisation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from layer_select.decoder import Decoder
from layer_select.sources.checkpoint import Checkpoint
from layer_select.sources.reading import reading
from layer_select.sources.skeleton import Attention, skeleton, tied_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: Attention = "eager",
) -> Decoder:
    """The whole model in memory, in evaluation mode; parameters require gradients."""
    model = skeleton(checkpoint.config, dtype, attention)
    tied = tied_names(model)
    names = [name for name in model.state_dict() if name not in tied]
    with reading(f"loading {checkpoint.where}", checkpoint.shapes.values(), len(names)) as bar:
        for name in names:
            _fill(model, name, checkpoint, device)
            bar.advance()
    return Decoder(_finished(model, device))


def stream(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: Attention = "eager",
) -> Decoder:
    """All but the blocks in memory; `block(l)` reads one block on entry and drops it on exit.

    Peak memory: embeddings, head, one block, and whatever runs through it.
    """
    return StreamedDecoder(checkpoint, dtype, device, attention)


class StreamedDecoder(Decoder):
    """A decoder whose blocks lie on the meta device except while they are worked on."""

    streams = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: Attention,
    ) -> None:
        """Load everything outside the blocks."""
        model = skeleton(checkpoint.config, dtype, attention)
        super().__init__(model)
        self._checkpoint = checkpoint
        self._target = device
        modules = {id(module): name for name, module in model.named_modules()}
        self._prefix = modules[id(self.blocks)]
        self._entered = [0] * self.num_layers
        inside = f"{self._prefix}."
        tied = tied_names(model)
        for name in model.state_dict():
            if name not in tied and not name.startswith(inside):
                _fill(model, name, checkpoint, device)
        for name, buffer in list(model.named_buffers()):
            _place(model, name, buffer.to(device))
        model.tie_weights()
        left = [n for n, p in model.named_parameters() if p.is_meta and not n.startswith(inside)]
        assert not left, f"never read: {left}"

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Block `index` with its weights read from the files; entered twice, it is read once."""
        block = self.blocks[index]
        if not self._entered[index]:
            for name in block.state_dict():
                _fill(block, name, self._checkpoint, self._target, f"{self._prefix}.{index}.")
        self._entered[index] += 1
        try:
            yield block
        finally:
            self._entered[index] -= 1
            if not self._entered[index]:
                for name, parameter in list(block.named_parameters()):
                    _place(block, name, nn.Parameter(torch.empty_like(parameter, device="meta")))


def _fill(
    module: nn.Module,
    name: str,
    checkpoint: Checkpoint,
    device: torch.device | str,
    prefix: str = "",
) -> None:
    """Put the checkpoint's tensor `prefix + name` in the place of `name`, in the type it has."""
    before = module.get_parameter(name)
    tensor = checkpoint.tensor(prefix + name, before.dtype).to(device)
    assert tensor.shape == before.shape, f"{prefix}{name}: {tensor.shape} for {before.shape}"
    _place(module, name, nn.Parameter(tensor))


def _place(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, tensor)


def _finished(model: "PreTrainedModel", device: torch.device | str) -> "PreTrainedModel":
    for name, buffer in list(model.named_buffers()):
        _place(model, name, buffer.to(device))
    model.tie_weights()
    named = (*model.named_parameters(), *model.named_buffers())
    left = [name for name, tensor in named if tensor.is_meta]
    assert not left, f"never read: {left}"
    return model
