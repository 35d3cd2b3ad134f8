"""`tokens`: the language of the histories."""

from typing import Literal

from layer_select.heal.objectives.base import Base


class Tokens(Base):
    """Cross-entropy of every next token."""

    type: Literal["tokens"] = "tokens"
