"""Feature types, one file each. The union is the registry: add a type by adding its file and a line here."""

from typing import Annotated

from pydantic import Field

from infnet.features.categorical import CategoricalFeature
from infnet.features.numeric import NumericFeature
from infnet.features.sequence import SequenceFeature
from infnet.features.statistic import StatisticFeature

Feature = Annotated[
    CategoricalFeature | NumericFeature | SequenceFeature | StatisticFeature,
    Field(discriminator="type"),
]

__all__ = [
    "CategoricalFeature",
    "Feature",
    "NumericFeature",
    "SequenceFeature",
    "StatisticFeature",
]
