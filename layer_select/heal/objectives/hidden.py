"""`hidden`: the teacher's residual stream."""

from typing import Literal

from layer_select.heal.objectives.base import Base


class Hidden(Base):
    """Direction of the residual stream after every kept layer."""

    type: Literal["hidden"] = "hidden"
