"""`ranking`: the teacher's scores of items."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from layer_select.heal.objectives.base import Base


class Ranking(Base):
    """Forward KL to the teacher's scores of items, at the end of every title."""

    type: Literal["ranking"] = "ranking"
    temperature: PositiveFloat = 1.0
    top_k: PositiveInt = 100
    """The teacher's best items, the candidates; all others are one class."""
