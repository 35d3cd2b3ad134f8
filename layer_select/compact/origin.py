"""Origin: which layers of which model a smaller one is made of. `compaction.json`.

{"format_version": 1, "model": "sha256:…", "num_layers": 12, "kept": [0, 3, 11],
 "repairs": [{"after": 0, "gap": [1, 2], "loss_before": 5.2, "loss_after": 5.0, "used": true}],
 "stages": [{"verb": "compact", …}, {"verb": "heal", …}]}
"""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from layer_select.artifact import check_kept, parse
from layer_select.sources.checkpoint import Checkpoint
from rayrun import storage
from rayrun.config import Config, ConfigError, Json

FILE = "compaction.json"
FORMAT_VERSION = 1


class GapRepair(Config):
    """What was tried at one gap. Layers are numbered as in the full model."""

    after: NonNegativeInt
    """The kept layer before the gap, which carries the map."""
    gap: tuple[int, ...]
    """The removed layers that the map stands for."""
    loss_before: float
    """Calibration loss with the repairs of the gaps before this one."""
    loss_after: float
    """The same with this map too."""
    used: bool
    """False: the map would have raised the loss, and was dropped."""


class Origin(Config):
    """Where the layers of a smaller model come from."""

    format_version: Literal[1] = FORMAT_VERSION
    model: str
    """Digest of the full model."""
    num_layers: PositiveInt
    """Of the full model."""
    kept: tuple[int, ...]
    """For each layer of the smaller model its index in the full one, ascending."""
    repairs: tuple[GapRepair, ...] = ()
    stages: tuple[Json, ...] = ()
    """The verbs that made it, in order: `verb` and what each wants remembered."""

    @model_validator(mode="after")
    def _layers_are_of_the_model(self) -> "Origin":
        check_kept(self.kept, self.num_layers)
        return self

    def write(self, directory: storage.Uri) -> None:
        """Write `compaction.json` into `directory`."""
        text = self.model_dump_json(indent=1) + "\n"
        storage.write_bytes(storage.join(directory, FILE), text.encode())

    @classmethod
    def read(cls, uri: storage.Uri) -> "Origin | None":
        """Of the model in the folder `uri`; None: it was not made by removing layers.

        Raises:
            ConfigError: damaged, or of a newer format.
        """
        place = storage.join(uri, FILE)
        return cls.parse(storage.read_bytes(place), place) if storage.exists(place) else None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Origin | None":
        """Of an open model; None: it was not made by removing layers.

        Raises:
            ConfigError: damaged, of a newer format, or of a model with another number of layers.
        """
        content = checkpoint.file(FILE)
        if content is None:
            return None
        found = cls.parse(content, f"{FILE} of {checkpoint.where}")
        layers = checkpoint.config.num_hidden_layers
        if len(found.kept) != layers:
            raise ConfigError(
                f"{FILE} of {checkpoint.where} names {len(found.kept)} layers, the model has "
                f"{layers}: it is another model's; remove the file, or copy the model again"
            )
        return found

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Origin":
        """From the bytes of a `compaction.json`; see `read`."""
        again = "compact the model again"
        return parse(cls, content, where, newest=FORMAT_VERSION, again=again)
