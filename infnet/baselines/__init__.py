"""Every model that can be trained, INFNet and its rivals. The union is the registry."""

from typing import Annotated

from pydantic import Field

from infnet.model.base import BaseModel
from infnet.model.infnet import INFNetConfig

Model = Annotated[INFNetConfig, Field()]

__all__ = ["BaseModel", "INFNetConfig", "Model"]
