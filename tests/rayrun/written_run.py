"""A configuration with everything that one can have: unions, places, mappings, checks."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayrun.config import (
    Config,
    Place,
    PlacePath,
    load,
    validate,
)
from rayrun.ray.compute import Compute


class Mlp(Config):
    type: Literal["mlp"] = "mlp"
    width: int = 8
    dropout: float = 0.0


class Wide(Config):
    type: Literal["wide"] = "wide"
    weights: Annotated[str, Place] = ""
    more: tuple[PlacePath, ...] = ()
    other: Annotated[str, Place] | None = None


class Files(Config):
    path: Annotated[str, Place]
    columns: dict[str, str] = {}


class Deep(Config):
    type: Literal["deep"] = "deep"
    part: str | Files = ""


Net = Annotated[Mlp | Wide | Deep, Field(discriminator="type")]


class Inputs(Config):
    data: Annotated[str, Place] = ""


class Run(Config):
    name: str
    net: Net = Mlp()
    rivals: dict[str, Net] = {}
    source: str | Files = "log"
    lr: float = 1e-3
    steps: int | None = None
    at: tuple[int, ...] = (5,)
    inputs: Inputs = Inputs()
    compute: Compute | None = None

    @model_validator(mode="after")
    def _steps_are_possible(self) -> "Run":
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")
        return self


def run_of(text: str, *sets: str, folder: Path) -> Run:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load(Run, path, sets)


def run(**changes: object) -> Run:
    return validate(Run, {"name": "a", **changes}, where="test")
