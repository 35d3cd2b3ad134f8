"""A decoder-only language model as a row of blocks that can be run one by one, or left out.

    x_0 = embed(ids)     x_{l+1} = f_l(x_l)     h = norm(x_L)     logits = h W_headᵀ

What a block is called with beside x_l (mask, rotary positions, which of them by layer type) is
recorded from the model's own forward, run once with recorders in the place of its blocks. So every
family's rules are those of its Hugging Face implementation, and none is repeated here.

Shapes: B samples, T tokens, D hidden width, V vocabulary, L layers. Leaving a block out is the
identity on x: exact, bit by bit the same as a model without it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Start:
    """The beginning of a forward pass: what enters block 0, and how each block is called."""

    hidden: Float[Tensor, "B T D"]
    calls: Sequence[Mapping[str, Any]]
    """Keyword arguments of each block beside its hidden states."""


class Decoder:
    """A causal language model of `transformers`, in evaluation mode, with its blocks apart."""

    streams: bool = False
    """Entering a block reads or gathers its weights: enter it seldom, with much work."""
    together: bool = False
    """Entering a block is a collective of all workers."""

    def __init__(self, model: Any) -> None:
        """`model` is a `transformers.PreTrainedModel`, not named: a configuration that is only read
        would wait for that package.
        """
        self.model = model.eval()
        self.config: Any = model.config
        self.body: Any = model.get_decoder()
        self.blocks: nn.ModuleList = self.body.layers

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie, and inputs belong."""
        return self.body.embed_tokens.weight.device

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Block `index` with its weights in place; called as `block(x, **start.calls[index])`.

        Work on one block for many batches belongs inside one `with`: a decoder whose weights do
        not fit loads them on entry and drops them on exit.
        """
        yield self.blocks[index]

    def start(self, ids: Int64[Tensor, "B T"], mask: Int64[Tensor, "B T"]) -> Start:
        """Embed the tokens and find out how the blocks are called. `mask` is 0 at padding."""
        recorders = [_Recorder(block) for block in self.blocks]
        self.body.layers = nn.ModuleList(recorders)
        try:
            self.body(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False
            )
        finally:
            self.body.layers = self.blocks
        return Start(recorders[0].hidden, [recorder.call for recorder in recorders])

    def through(
        self, start: Start, kept: Iterable[int] | None = None, hidden: Tensor | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return x after the blocks `kept` (None: all), in the order of the model.

        `hidden` continues from there instead of from the embeddings.
        """
        x = start.hidden if hidden is None else hidden
        for index in range(self.num_layers) if kept is None else sorted(kept):
            with self.block(index) as block:
                x = block(x, **start.calls[index])
        return x

    def finish(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """h, the final norm of x."""
        return self.body.norm(hidden)

    def logits(self, normed: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Scores of the next token; give it only the positions that are needed."""
        head: Any = self.model.get_output_embeddings()
        found = head(normed)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return found if cap is None else torch.tanh(found / cap) * cap


class _Recorder(nn.Module):
    """Stands in for a block: notes what it is called with, and passes x on."""

    hidden: Tensor
    call: dict[str, Any]

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = (block,)  # in a tuple: not a submodule of this one

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # some families ask a layer for its attention type
            return getattr(self.__dict__["_block"][0], name)

    def forward(self, hidden_states: Tensor, **call: Any) -> Tensor:
        mask = call.get("attention_mask")
        if mask is not None and mask.dtype == torch.float64:
            # transformers takes the softmax in float32, where the lowest float64 is −∞: a row of
            # padding, which sees nothing, would be NaN, and reach the others as 0 · NaN.
            call["attention_mask"] = mask.clamp(min=torch.finfo(torch.float32).min)
        self.hidden, self.call = hidden_states, call
        return hidden_states
