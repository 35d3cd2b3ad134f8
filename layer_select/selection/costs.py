"""What the layers of a decoder cost here: parameters, and milliseconds of a forward pass."""

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from layer_select.decoder import Decoder
from layer_select.selection.budget import Costs
from rayrun.config import Json


def parameters_of(model: nn.Module) -> Costs:
    """Parameters of each layer and of all else; nothing is computed, so `meta` will do."""
    blocks = model.get_decoder().layers  # type: ignore[operator]
    each = [sum(p.numel() for p in block.parameters()) for block in blocks]
    return Costs(each, sum(p.numel() for p in model.parameters()) - sum(each))


@torch.no_grad()
def timed(decoder: Decoder, objective: Any, batch: Any, repeats: int) -> Json:
    """Times of a forward pass of one micro-batch, milliseconds: median and quartiles.

    Returns:
        `layer_ms` and `other_ms` (medians), `layer_quartiles`, `other_quartiles`, `rows`, `tokens`,
        `device`, `repeats`.
    """
    layers: list[float] = []
    others: list[float] = []
    for _ in range(repeats + 2):  # the first two warm caches up
        marks = [_now(decoder)]
        start = decoder.start(batch.ids, batch.mask)
        marks.append(_now(decoder))
        x, inside = start.hidden, 0.0
        if decoder.streams:  # what reading or gathering the weights takes is not the layers' own
            for index, call in enumerate(start.calls):
                with decoder.block(index) as block:
                    entered = _now(decoder)
                    x = block(x, **call)
                    inside += _now(decoder) - entered
        else:
            x = decoder.through(start)
            inside = _now(decoder) - marks[1]
        marks.append(_now(decoder))
        objective.loss(decoder.finish(x), batch)
        marks.append(_now(decoder))
        layers.append(inside / decoder.num_layers)
        others.append(marks[1] - marks[0] + marks[3] - marks[2])
    found = {"layer": np.array(layers[2:]) * 1e3, "other": np.array(others[2:]) * 1e3}
    told: Json = {f"{name}_ms": float(np.median(times)) for name, times in found.items()}
    for name, times in found.items():
        told[f"{name}_quartiles"] = np.quantile(times, [0.25, 0.75]).tolist()
    rows, tokens = batch.ids.shape
    told |= {"rows": rows, "tokens": tokens, "repeats": repeats, "device": str(decoder.device)}
    return told


def _now(decoder: Decoder) -> float:
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
    return time.perf_counter()
