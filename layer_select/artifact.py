"""One JSON file that a verb leaves for the next: `scores.json`, `plan.json`, `compaction.json`."""

import json
from collections.abc import Sequence
from typing import TypeVar

from rayrun import __version__
from rayrun.config import Config, ConfigError, validate

Artifact = TypeVar("Artifact", bound=Config)


def parse(cls: type[Artifact], content: bytes, where: str, *, newest: int, again: str) -> Artifact:
    """The artifact of these bytes.

    Args:
        cls: its class.
        content: of the file.
        where: how messages call it.
        newest: the newest `format_version` that this program reads.
        again: how to make it again, `score again`.

    Raises:
        ConfigError: damaged, invalid, or of a newer format.
    """
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{where} is damaged ({error}); {again}") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > newest:
        raise ConfigError(
            f"{where} has format_version {version}; this program ({__version__}) reads up to "
            f"{newest}: install a newer infnet-ray, or {again}"
        )
    return validate(cls, raw, where=where)


def check_kept(kept: Sequence[int], num_layers: int) -> None:
    """Layers that stay are named ascending, each once, and are of the model.

    Raises:
        ValueError: they are not.
    """
    if not kept or list(kept) != sorted(set(kept)):
        raise ValueError(f"kept must name at least one layer, ascending, each once: {tuple(kept)}")
    if kept[0] < 0 or kept[-1] >= num_layers:
        raise ValueError(
            f"kept must lie in 0..{num_layers - 1}, the layers of the model: {tuple(kept)}"
        )
