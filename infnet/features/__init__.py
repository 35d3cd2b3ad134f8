"""Feature types, one file each.

The union is the registry: add a type by adding its file and a line here.
"""

from typing import Annotated

from pydantic import Field

from infnet.features.categorical import CategoricalFeature
from infnet.features.delta import DeltaFeature
from infnet.features.numeric import NumericFeature
from infnet.features.pretrained import PretrainedFeature
from infnet.features.ratio import RatioFeature
from infnet.features.sequence import SequenceFeature
from infnet.features.statistic import StatisticFeature
from infnet.features.window import WindowFeature

Feature = Annotated[
    CategoricalFeature
    | NumericFeature
    | SequenceFeature
    | WindowFeature
    | RatioFeature
    | DeltaFeature
    | PretrainedFeature
    | StatisticFeature,
    Field(discriminator="type"),
]

__all__ = [
    "CategoricalFeature",
    "DeltaFeature",
    "Feature",
    "NumericFeature",
    "PretrainedFeature",
    "RatioFeature",
    "SequenceFeature",
    "StatisticFeature",
    "WindowFeature",
]
