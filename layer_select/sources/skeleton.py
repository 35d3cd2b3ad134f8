"""A model without weights: every parameter on the meta device, every buffer real."""

import copy
import threading
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Attention = Literal["eager", "sdpa"]

BUILDING = threading.RLock()
"""Held while `transformers` makes a model: it puts other initialisers into torch meanwhile, for the
whole process, and two threads at once would leave them there.
"""


class _ParametersOnMeta(TorchFunctionMode):
    """Allocations that a parameter starts as go to the meta device.

    `transformers` allocates parameters with empty, zeros or ones and computes its buffers (rotary
    frequencies, the scale of embeddings) from numbers: those stay real, and right.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            given["device"] = "meta"
        return func(*args, **given)


def skeleton(
    config: Any, dtype: torch.dtype = torch.float32, attention: Attention = "eager"
) -> "PreTrainedModel":
    """The model of `config` with its parameters (tied ones tied) on the meta device.

    Families with learned sinks or capped logits (gpt-oss, Gemma 2) have eager attention only, and
    get it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    own = copy.deepcopy(config)  # the model writes its type and its attention into it
    family: Any = AutoModelForCausalLM._model_mapping[type(config)]
    if not family._supports_sdpa:
        attention = "eager"
    with BUILDING, _ParametersOnMeta(), no_init_weights():
        model = AutoModelForCausalLM.from_config(own, dtype=dtype, attn_implementation=attention)
    model.tie_weights()  # part of the initialisation that was skipped
    unfilled = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not unfilled, f"buffers of {type(model).__name__} without values: {unfilled}"
    assert all(parameter.is_meta for parameter in model.parameters())
    return model.eval()


def tied_names(model: "PreTrainedModel") -> dict[str, str]:
    """Names of the state dict that are another name's tensor, and that name."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if (known := first.setdefault(id(tensor), name)) != name:
            tied[name] = known
    return tied
