"""How large a model is: parameters of its layers and of all, and bytes at rest."""

from layer_select.selection.costs import parameters_of
from layer_select.sources import Checkpoint
from layer_select.sources.skeleton import skeleton
from layer_select.task.head import ITEM_HEAD
from layer_select.task.rating import RATING_HEAD
from rayrun import storage
from rayrun.config import Json

HEADS = (ITEM_HEAD, RATING_HEAD)


def sizes(checkpoint: Checkpoint) -> Json:
    """`layers`, `width`, `block_parameters`, `parameters` (of the decoder, a tied head once), and
    `disk_bytes` of its files of weights (where they are not files of their own, of its tensors).
    """
    costs = parameters_of(skeleton(checkpoint.config))
    return {
        "layers": len(costs.parameters),
        "width": int(checkpoint.config.hidden_size),
        "block_parameters": sum(costs.parameters),
        "parameters": sum(costs.parameters) + costs.other_parameters,
        "disk_bytes": _files(checkpoint.where) or _tensors(checkpoint),
    }


def _files(where: str) -> int:
    if where.startswith("ollama:") or not storage.exists(where):
        return 0
    if where.endswith(".gguf"):
        return storage.size(where)
    names = [n for n in storage.names(where) if n.endswith(".safetensors") and "/" not in n]
    return sum(storage.size(storage.join(where, n)) for n in names if n not in HEADS)


def _tensors(checkpoint: Checkpoint) -> int:
    held = checkpoint.shapes.values()
    total = 0
    for info in held:
        count = 1
        for side in info.shape:
            count *= side
        total += count * info.dtype.itemsize
    return total
