"""The `compact:` section: how a plan becomes a smaller model on disk."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rayrun.config import Config


class NoRepair(Config):
    """Layers are removed and nothing else is changed."""

    type: Literal["none"] = "none"


class LinearRepair(Config):
    """A linear map for each gap, folded into `down_proj` of the layer before it."""

    type: Literal["linear"] = "linear"
    ridge: PositiveFloat = 1e-3
    """λ as a share of the mean square of the MLP's output channels; λ holds the map to the
    identity."""
    bias: bool = False
    """A constant beside the map, where `down_proj` of the family can carry one (llama, gpt-oss);
    elsewhere the map is folded without, and the report says so."""


Repair = Annotated[NoRepair | LinearRepair, Field(discriminator="type")]


class Compact(Config):
    """What `layer-select compact` writes."""

    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Of the weights written; `keep`: each tensor's own, float32 for those of a quantised file."""
    shard_bytes: PositiveInt = 5 * 10**9
    """Largest size of one file of weights; a larger tensor has a file of its own."""
    repair: Repair = LinearRepair()
    """Whether gaps are repaired, on the calibration samples of the task."""
