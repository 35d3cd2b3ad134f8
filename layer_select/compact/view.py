"""A model without some of its layers, without writing or copying anything.

Layer i of the smaller model is layer `kept[i]` of the full one: names of tensors are renumbered,
every entry of the configuration that speaks of single layers is cut, and all else is as it was.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layer_select.families import constraints, per_layer_entries
from layer_select.sources.checkpoint import Checkpoint, Info
from layer_select.sources.view import View
from rayrun.config import ConfigError

_OF_A_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")


class Compacted(View):
    """The `kept` layers of a checkpoint, as a checkpoint."""

    kept: tuple[int, ...]

    def __init__(self, source: Checkpoint, kept: Sequence[int]) -> None:
        """Cut the configuration; tensors are read when they are asked for.

        Args:
            source: the full model.
            kept: its layers that stay, ascending.

        Raises:
            ConfigError: `kept` is empty, unordered or names layers that are not there; or the
                family is unknown, or a mixture in which layers differ by lists of indices.
        """
        constraints(source.config)
        self.kept = tuple(kept)
        super().__init__(source, cut_config(source.config, self.kept))

    def info(self, name: str) -> Info:
        """See `View`."""
        return self.source.shapes[self._before(name)]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """See `Checkpoint`."""
        return self.source.tensor(self._before(name), dtype)

    def _before(self, name: str) -> str:
        match = _OF_A_LAYER.fullmatch(name)
        if match is None:
            return name
        prefix, index, rest = match.groups()
        return f"{prefix}{self.kept[int(index)]}{rest}"


def cut_config(config: Any, kept: Sequence[int]) -> Any:
    """The configuration of the model that has the layers `kept` only.

    `max_window_layers` of Qwen counts the first layers, which see everything: it becomes the number
    of kept layers among them.

    Raises:
        ConfigError: `kept` is empty, unordered or names layers that are not there.
    """
    layers = config.num_hidden_layers
    chosen = list(kept)
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= layers:
        raise ConfigError(
            f"the kept layers must be some of 0..{layers - 1}, ascending, each once; found {chosen}"
        )
    entries: dict[str, Any] = {
        name: [values[layer] for layer in chosen]
        for name, values in per_layer_entries(config).items()
    }
    first = getattr(config, "max_window_layers", None)
    if first is not None and first < layers:
        entries["max_window_layers"] = sum(layer < first for layer in chosen)
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = len(chosen)
    for name, values in entries.items():
        setattr(cut, name, values)
    return cut
