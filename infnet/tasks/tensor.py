"""`Tensor` for the annotations of tasks. A task is also a description, which a server reads without
torch; so torch is imported where a task computes, and not before.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # tests still check shapes and element types

__all__ = ["Tensor"]
