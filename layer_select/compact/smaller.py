"""What a smaller model is: its weights as a view, its sizes, where its layers come from."""

from collections.abc import Sequence

import torch

from layer_select.compact.config import LinearRepair
from layer_select.compact.folded import Folded, carries_bias
from layer_select.compact.origin import GapRepair, Origin
from layer_select.compact.repair import GapMap
from layer_select.compact.view import Compacted
from layer_select.config import LayerSelectConfig
from layer_select.families import constraints
from layer_select.opened import DTYPES
from layer_select.selection.costs import parameters_of
from layer_select.sources import Checkpoint
from layer_select.sources.huggingface_write import planned_tensors
from layer_select.sources.skeleton import skeleton
from rayrun.config import Json


def sizes_of(config: LayerSelectConfig, checkpoint: Checkpoint, kept: Sequence[int]) -> Json:
    """`[before, after]` of layers, parameters of the blocks, all parameters, bytes of weights.

    Bytes before are those of the tensors as they would be written without cutting.
    """
    found: Json = {"layers": [], "block_parameters": [], "parameters": [], "bytes": []}
    dtype = dtype_of(config)
    for model in (checkpoint, Compacted(checkpoint, kept)):
        costs = parameters_of(skeleton(model.config))
        found["layers"].append(len(costs.parameters))
        found["block_parameters"].append(sum(costs.parameters))
        found["parameters"].append(sum(costs.parameters) + costs.other_parameters)
        found["bytes"].append(sum(tensor.bytes for tensor in planned_tensors(model, dtype)))
    return found


def dtype_of(config: LayerSelectConfig) -> torch.dtype | None:
    """Of the weights to be written; None: each its own."""
    known = {**DTYPES, "float16": torch.float16}
    return None if config.compact.dtype == "keep" else known[config.compact.dtype]


def notes_of(config: LayerSelectConfig, checkpoint: Checkpoint, kept: Sequence[int]) -> list[str]:
    """What a person should know of this compaction, a sentence each."""
    notes: list[str] = []
    repair = config.compact.repair
    if isinstance(repair, LinearRepair):
        if repair.bias and not carries_bias(checkpoint.config):
            notes.append(
                f"down_proj of a {checkpoint.config.model_type} model has no bias: maps are fitted "
                "and folded without a constant, compact.repair.bias has no effect"
            )
        if kept[0] > 0:
            notes.append(
                f"layers 0 to {kept[0] - 1} are removed before the first kept one, where no layer "
                "can carry a map: that gap is not repaired"
            )
    if checkpoint.quantised:
        notes.append(
            f"the source is quantised ({checkpoint.quantised}); its weights are written "
            f"dequantised, as {config.compact.dtype.replace('keep', 'float32')}"
        )
    rule = constraints(checkpoint.config)
    if rule is not None and not rule.allows(kept):
        notes.append(f"only Hugging Face's code will run this model exactly: {rule.explain(kept)}")
    return notes


def origin_of(
    checkpoint: Checkpoint, kept: Sequence[int], maps: Sequence[GapMap], stage: Json
) -> Origin:
    """Of the smaller model, in the layers of the model that the first compaction began with."""
    before = Origin.of(checkpoint)
    if before is None:
        layers = checkpoint.config.num_hidden_layers
        before = Origin(model=checkpoint.digest, num_layers=layers, kept=tuple(range(layers)))
    first = before.kept
    repairs = [
        GapRepair(
            after=first[found.after],
            gap=tuple(first[layer] for layer in found.gap),
            loss_before=found.loss_before,
            loss_after=found.loss_after,
            used=found.used,
        )
        for found in maps
    ]
    return Origin(
        model=before.model,
        num_layers=before.num_layers,
        kept=tuple(first[layer] for layer in kept),
        repairs=(*before.repairs, *repairs),
        stages=(*before.stages, stage),
    )


def view_of(checkpoint: Checkpoint, kept: Sequence[int], maps: Sequence[GapMap]) -> Checkpoint:
    """The smaller model with its used maps, unwritten."""
    small = Compacted(checkpoint, kept)
    places = {layer: new for new, layer in enumerate(kept)}
    used = {places[found.after]: found.map for found in maps if found.used}
    return Folded(small, used) if used else small
