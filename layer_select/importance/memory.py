"""How much memory a worker needs to score layers, from sizes alone.

    whole     weights                                + activations
    streamed  outside + one block                    + activations
    zero3     outside + blocks / workers + one block + activations

    activations = residual streams of a chunk, or hidden states that sets of layers share, if more
                + one block's forward and backward pass + gradients of single samples
                + what the methods keep

Shapes: L layers, B samples and T tokens of a micro-batch, D hidden width, W workers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layer_select.coalitions import MEMORY_BYTES
from layer_select.importance.angular import Angular
from layer_select.importance.attention_concentration import AttentionConcentration
from layer_select.importance.cka import Cka
from layer_select.importance.execution import Execution
from layer_select.importance.gradients import FORMED_BYTES
from layer_select.importance.kernel_shap import KernelShap
from layer_select.importance.method import ByRemoval, MethodConfig, Need, Observed, Variant
from layer_select.importance.shapley import Shapley
from rayrun.object_store import human


@dataclass(frozen=True)
class Sizes:
    """Of a model, in numbers, not bytes."""

    layers: int
    width: int
    heads: int
    blocks: int
    """Parameters of all blocks."""
    largest_block: int
    outside: int
    """Parameters outside the blocks: embeddings, final norm, head."""
    linear_inputs: int
    """Inputs of all linear maps of a block, per token."""
    linear_outputs: int
    largest_linear: int
    """Parameters of the largest linear map."""
    others: int
    """Parameters of a block outside its linear maps: norms, and experts fused into one tensor."""
    largest_other: int
    itemsize: int
    """Bytes of a number."""
    eager: bool = False
    """Attention forms all its weights, heads × T² of a sample: families without another, and
    float64."""
    head_width: int = 0
    """E, of a head of queries."""

    @classmethod
    def of(cls, model: Any) -> "Sizes":
        """Of a model; one without weights will do."""
        body = model.get_decoder()
        counts = [sum(p.numel() for p in block.parameters()) for block in body.layers]
        block = body.layers[counts.index(max(counts))]
        linear = [m for m in block.modules() if isinstance(m, nn.Linear)]
        inside = {id(p) for m in linear for p in m.parameters()}
        others = [p.numel() for p in block.parameters() if id(p) not in inside]
        config = model.config
        routed = getattr(config, "num_experts_per_tok", 0) or 0
        expert = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        size = torch.empty(0, dtype=next(model.parameters()).dtype).element_size()
        return cls(
            layers=len(counts),
            width=config.hidden_size,
            heads=config.num_attention_heads,
            blocks=sum(counts),
            largest_block=max(counts),
            outside=sum(p.numel() for p in model.parameters()) - sum(counts),
            linear_inputs=sum(m.in_features for m in linear)
            + routed * (config.hidden_size + expert),
            linear_outputs=sum(m.out_features for m in linear)
            + routed * (2 * expert + config.hidden_size),
            largest_linear=max(m.weight.numel() for m in linear),
            others=sum(others),
            largest_other=max(others, default=0),
            itemsize=size,
            eager=config._attn_implementation == "eager" or size == 8,
            head_width=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker needs, by what needs them."""

    parts: dict[str, int]
    """What stands at the same time, on the device."""
    host: dict[str, int]
    """The same on the host (of a CPU worker: beside the others)."""
    chunk: int
    """Micro-batches that go through a block while its weights are there."""

    @property
    def device_bytes(self) -> int:
        """Peak on the device."""
        return sum(self.parts.values())

    @property
    def total_bytes(self) -> int:
        """Peak on device and host together: of a CPU worker."""
        return self.device_bytes + sum(self.host.values())

    def lines(self) -> list[str]:
        """For a person."""
        shown = [f"  {name}: {human(size)}" for name, size in self.parts.items()]
        shown.append(f"  = {human(self.device_bytes)} on the device, chunks of {self.chunk}")
        return shown + [f"  on the host: {name}: {human(size)}" for name, size in self.host.items()]


def memory(
    sizes: Sizes,
    execution: Execution,
    methods: Sequence[MethodConfig],
    *,
    rows: int,
    tokens: int,
    batches: int,
    workers: int,
    items: int = 0,
) -> Memory:
    """The formula with numbers.

    Args:
        sizes: of the model.
        execution: where the weights are.
        methods: what is measured.
        rows: B, samples of a micro-batch.
        tokens: T, of the longest prompt.
        batches: micro-batches in all.
        workers: W.
        items: of the catalogue, where each has a vector (head task).
    """
    size, places = sizes.itemsize, rows * tokens
    needs, variants = _needs(methods)
    observers = [method for method in methods if isinstance(method, Observed)]
    stream = places * sizes.width * size
    one_batch = stream * (sizes.layers + 1 + variants)
    chunk = chunk_of(execution, one_batch, batches, workers)
    block = sizes.largest_block * size
    match execution.type:
        case "whole":
            weights = {"weights": (sizes.outside + sizes.blocks) * size}
        case "streamed":
            weights = {"weights outside the blocks": sizes.outside * size, "one block": block}
        case "zero3":
            weights = {
                "weights outside the blocks": sizes.outside * size,
                f"this worker's part of the blocks (1/{workers})": sizes.blocks * size // workers,
                "one block": block,
            }
    inner = places * (sizes.linear_inputs + sizes.linear_outputs + 10 * sizes.width) * size
    backward = places * sizes.linear_outputs * size
    if sizes.eager:
        inner += rows * sizes.heads * tokens**2 * (size * 3 + 4)
        backward += rows * sizes.heads * tokens**2 * size * 2
    else:
        inner += 2 * rows * tokens**2 * size  # two masks, whatever the heads
    shared = _shared(execution, methods, sizes.layers, stream, -(-batches // workers))
    shared -= chunk * one_batch
    parts = {
        **weights,
        f"residual streams ({chunk} × (L + 1 + {variants}) × B·T·D)": chunk * one_batch,
        **({"hidden states that sets of layers share, beyond": shared} if shared > 0 else {}),
        "one block, forward and backward": inner + (backward if "backward" in needs else 0),
    }
    if needs & {"squares", "absolutes", "products"}:
        formed = sizes.largest_linear * max(size, 4)
        at_once = max(1, min(rows, FORMED_BYTES // formed))
        copies = 3 if "absolutes" in needs else 1
        alone = sizes.others * size + sizes.largest_other * max(size, 4)  # experts, one sample
        parts["gradients of single samples"] = max(at_once * formed * copies, alone)
    for method in observers:
        if isinstance(method, AttentionConcentration):
            seen = 2 * places * sizes.heads * sizes.head_width * size
            seen += sizes.heads * (min(method.rows, tokens) * 5 + sizes.head_width) * tokens * 8
            parts["queries, keys and single rows of attention"] = seen
    if pairs := max([_pairs(sizes, m, rows, tokens) for m in observers], default=0):
        parts["pairs of layers"] = pairs
    if items:
        parts["item vectors and scores of all items"] = items * (sizes.width + 4 * rows) * 4
    host: dict[str, int] = {}
    if "products" in needs:
        host["signed sums Σ g w (two, float64; {type: taylor, signed: false} has none)"] = (
            2 * sizes.blocks * 8
        )
    return Memory(parts, host, chunk)


def chunk_of(execution: Execution, one_batch: int, batches: int, workers: int) -> int:
    """Micro-batches of a chunk: one if the weights are there anyway, else what memory allows."""
    if execution.type == "whole":
        return 1
    return max(1, min(execution.activation_bytes // max(1, one_batch), -(-batches // workers)))


def removal_bytes(execution: Execution) -> int:
    """Memory for hidden states that sets of layers share."""
    return MEMORY_BYTES if execution.type == "whole" else execution.activation_bytes


def _shared(
    execution: Execution, methods: Sequence[MethodConfig], layers: int, stream: int, batches: int
) -> int:
    """What the methods by removal keep of it: at most the states of all prefixes of their sets."""
    states = 0
    for method in methods:
        if isinstance(method, Shapley | KernelShap):
            exact = 2**layers if method.exact else math.inf
            drawn = (
                method.permutations * layers if isinstance(method, Shapley) else method.coalitions
            )
            states = max(states, min(exact, drawn * layers))
        elif isinstance(method, ByRemoval):
            states = max(states, layers + 1)
    return int(min(removal_bytes(execution), states * stream * batches))


def _needs(methods: Sequence[MethodConfig]) -> tuple[frozenset[Need], int]:
    observers = [method.observer() for method in methods if isinstance(method, Observed)]
    needs: set[Need] = {need for observer in observers for need in observer.needs}
    variants: set[Variant] = {
        variant for o in observers if "backward" in o.needs for variant in o.variants
    }
    return frozenset(needs), len(variants)


def _pairs(sizes: Sizes, method: MethodConfig, rows: int, tokens: int) -> int:
    states = sizes.layers + 1
    if isinstance(method, Angular):
        count = tokens if method.tokens == "all" else 1
        return count * states * (2 * sizes.width + 3 * states) * 8
    if isinstance(method, Cka):
        count = min(method.tokens, rows * tokens)
        return states * count * (2 * sizes.width + 2 * count) * 8
    return 2 * rows * tokens * sizes.width * 8  # two states in float64
