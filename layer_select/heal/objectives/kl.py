"""`kl`: the teacher's distribution of the next token."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from layer_select.heal.objectives.base import Base


class Kl(Base):
    """Forward KL to the teacher's next token."""

    type: Literal["kl"] = "kl"
    temperature: PositiveFloat = 1.0
    top_k: PositiveInt = 32
    """Tokens whose logits are kept; all others are one class."""
