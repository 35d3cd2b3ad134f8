"""Every model that can be trained, INFNet and its rivals. The union is the registry."""

from typing import Annotated

from pydantic import Field

from infnet.baselines.floor import FloorConfig
from infnet.baselines.online_stack import OnlineStackConfig
from infnet.model.base import BaseModel
from infnet.model.infnet import INFNetConfig

Model = Annotated[INFNetConfig | FloorConfig | OnlineStackConfig, Field(discriminator="type")]

__all__ = ["BaseModel", "FloorConfig", "INFNetConfig", "Model", "OnlineStackConfig"]
