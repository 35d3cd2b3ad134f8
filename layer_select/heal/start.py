"""Start: what a student begins as, as data that every worker can open."""

from typing import Annotated, Literal

from pydantic import Field

from layer_select.heal.config import Narrow
from rayrun.config import Config


class Cut(Config):
    """Some layers of a model, with their weights."""

    type: Literal["cut"] = "cut"
    kept: tuple[int, ...]
    """Of the model at `model`."""
    model: str = ""
    """A folder; empty: the teacher."""


class Folder(Config):
    """A smaller model on disk, repaired perhaps; its `compaction.json` names the layers."""

    type: Literal["folder"] = "folder"
    place: str


class Random(Config):
    """The architecture of these layers of the teacher, with random weights."""

    type: Literal["random"] = "random"
    kept: tuple[int, ...]


Start = Annotated[Cut | Folder | Random | Narrow, Field(discriminator="type")]

AnyStart = Cut | Folder | Random | Narrow


class Started(Config):
    """A start on its way to the workers."""

    start: Start
