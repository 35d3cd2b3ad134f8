"""Scores of layers at rest: `scores.json`.

{"format_version": 1, "model": "sha256:…", "task": "sha256:…", "num_layers": L, "samples": N,
 "methods": {"fisher": {"type": "fisher", "scores": […], "errors": […], "seconds": 1.2,
                        "higher": "keep", "details": {}}, …},
 "pairs": {"angular": [[…], …]}, "shared_seconds": {"forward": 3.1, …}, "loss": 5.2}
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from layer_select.artifact import parse
from layer_select.importance.method import Found
from rayrun import storage
from rayrun.config import Config, ConfigError, Json

FILE = "scores.json"
FORMAT_VERSION = 1


class MethodScores(Config):
    """What one method says of every layer."""

    type: str
    scores: tuple[float, ...]
    """One per layer."""
    errors: tuple[NonNegativeFloat, ...]
    """Standard error of each."""
    seconds: NonNegativeFloat
    """What the method cost by itself, over all workers, beside the shared pass."""
    higher: Literal["keep"] = "keep"
    """A layer with a higher score is the one to keep, of every method."""
    details: Json = {}

    @property
    def tensor(self) -> Tensor:
        """The scores, float64."""
        return torch.tensor(self.scores, dtype=torch.float64)


class Scores(Config):
    """Scores of the layers of one model on one task."""

    format_version: Literal[1] = FORMAT_VERSION
    model: str
    """Digest of the model."""
    task: str
    """Digest of the task: events, samples, tokens."""
    num_layers: PositiveInt
    samples: PositiveInt
    """Calibration samples."""
    methods: dict[str, MethodScores]
    pairs: dict[str, tuple[tuple[float, ...], ...]] = {}
    """Matrices over the L + 1 positions of the residual stream: 0 before the first layer."""
    shared_seconds: dict[str, NonNegativeFloat] = {}
    """What the one pass cost that all methods of it share, over all workers: `forward`, `backward`,
    and `weights`, the sums over gradients of weights."""
    loss: float
    """Mean loss of the whole model."""

    @model_validator(mode="after")
    def _one_for_each_layer(self) -> "Scores":
        for key, found in self.methods.items():
            if {len(found.scores), len(found.errors)} != {self.num_layers}:
                raise ValueError(
                    f"methods.{key} must have a score and an error for each of {self.num_layers} "
                    f"layers, found {len(found.scores)} and {len(found.errors)}"
                )
        return self

    @classmethod
    def of(
        cls,
        found: Mapping[str, Found],
        *,
        types: Mapping[str, str],
        model: str,
        task: str,
        samples: int,
        loss: float,
        shared_seconds: Mapping[str, float],
    ) -> "Scores":
        """From what the methods found; `types` tells the type of each key."""
        methods = {
            key: MethodScores(
                type=types[key],
                scores=tuple(one.scores.tolist()),
                errors=tuple(one.errors.tolist()),
                seconds=one.seconds or 0.0,
                details=one.details,
            )
            for key, one in found.items()
        }
        pairs = {
            name: tuple(tuple(row) for row in matrix.tolist())
            for one in found.values()
            for name, matrix in one.pairs.items()
        }
        return cls(
            model=model,
            task=task,
            num_layers=len(next(iter(found.values())).scores),
            samples=samples,
            methods=methods,
            pairs=pairs,
            shared_seconds=dict(shared_seconds),
            loss=loss,
        )

    def of_method(self, key: str) -> MethodScores:
        """The scores of one method.

        Raises:
            ConfigError: they are not among these.
        """
        if key not in self.methods:
            raise ConfigError(
                f"the scores have no {key!r}, they have {', '.join(self.methods)}; name one of "
                "these, or add it to score.methods and run `layer-select score` again"
            )
        return self.methods[key]

    def write(self, directory: storage.Uri) -> None:
        """Write `scores.json` into `directory`."""
        text = self.model_dump_json(indent=1) + "\n"
        storage.write_bytes(storage.join(directory, FILE), text.encode())

    @classmethod
    def read(cls, uri: storage.Uri, *, model: str = "", task: str = "") -> "Scores":
        """Read scores, and refuse those of something else.

        Args:
            uri: output directory of `layer-select score`, or a `scores.json`.
            model: digest of the model that they must be of; empty: any.
            task: digest of the task that they must be of; empty: any.

        Raises:
            ConfigError: none there, damaged, of a newer format, or of another model or task.
        """
        named = str(uri)
        place = named if named.endswith(".json") else storage.join(named, FILE)
        content = storage.read_bytes(place)
        scores = parse(cls, content, place, newest=FORMAT_VERSION, again="score again")
        for name, wanted, found in (("model", model, scores.model), ("task", task, scores.task)):
            if wanted and found != wanted:
                raise ConfigError(
                    f"{place} holds scores of another {name}: {found}, here it is {wanted}; run "
                    "`layer-select score` with this configuration, or give its scores"
                )
        return scores
