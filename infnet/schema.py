"""Schema: what the fitted features hand to a model, and which tasks it answers.

The schema is the contract between data and model. It is pure data (JSON beside the shards): the
widths of embedding tables, the order of the categorical fields, the dense blocks, the behaviour
sequences, the tasks. It holds no vocabulary; those are the encoder's (`infnet.features.encoder`).

Ids: 0 is padding (sequences only), 1 a value never seen in training, 2… known values. A missing
categorical value (null) is a value like any other.
"""

from pathlib import Path

from pydantic import model_validator

from infnet.tasks import Task
from rayrun.config import Config, ConfigError

PADDING = 0
UNKNOWN = 1
FIRST_KNOWN = 2

FORMAT_VERSION = 1


class TableSpec(Config):
    """One embedding table, shared by all fields that name it."""

    rows: int
    """Number of ids, padding and unknown included."""
    dim: int
    """Width of one embedding, 8 to 128."""
    cold_start: str = "unknown"
    """Row of an unseen id: `unknown`, trained on rare ids; `mean`, that of the known rows."""


class FieldSlot(Config):
    """One categorical field: one id per row, one token in INFNet."""

    name: str
    table: str


class DenseSlot(Config):
    """`width` consecutive floats of `Batch.dense`: a number, a window, a pretrained vector."""

    name: str
    width: int
    kind: str
    """The feature type it came from (`numeric`, `statistic`, `window`, …)."""
    task: str = ""
    """For a smoothed target rate: the task whose label it averages. Empty for all others."""
    mean: float = 0.0
    """Of a statistic's encoded values over training rows, for models that standardise it."""
    deviation: float = 1.0
    """Standard deviation of the same, above 0."""


class SequenceSlot(Config):
    """One behaviour type: at most `max_length` past events, oldest first, each ids and an age."""

    name: str
    max_length: int
    tables: tuple[str, ...]
    """The table of each id of an event, in the order of the last axis of its ids."""
    fields: tuple[str, ...]
    """The categorical feature each id belongs to (same vocabulary), same order."""
    positions: bool = False
    """Add a learned embedding of the position counted from the most recent event."""
    decay: float = 0.0
    """λ per day of the time decay w_t = exp(−λ Δt) on each event's token; 0 switches it off."""
    pooling: str = "sum"
    """How proxies and baselines without attention pool it: `sum`, `mean` or `attention`."""


class Schema(Config):
    """Everything a model needs to know of the data, in the order of the batch's columns."""

    format_version: int = FORMAT_VERSION
    tables: dict[str, TableSpec]
    fields: tuple[FieldSlot, ...]
    dense: tuple[DenseSlot, ...]
    sequences: tuple[SequenceSlot, ...]
    tasks: dict[str, Task]
    encoder_digest: str
    """Digest of the fitted encoder; checkpoint and data must agree on it."""

    @model_validator(mode="after")
    def _tables_exist(self) -> "Schema":
        used = {f.table for f in self.fields} | {t for s in self.sequences for t in s.tables}
        if missing := sorted(used - set(self.tables)):
            raise ValueError(f"tables {missing} are used by a field or sequence but not described")
        return self

    @property
    def dense_width(self) -> int:
        """Columns of `Batch.dense`."""
        return sum(slot.width for slot in self.dense)

    @property
    def dense_starts(self) -> dict[str, int]:
        """First column of each dense slot."""
        starts, at = {}, 0
        for slot in self.dense:
            starts[slot.name] = at
            at += slot.width
        return starts

    def with_moments(self, moments: dict[str, tuple[float, float]]) -> "Schema":
        """The schema with (mean, deviation) of some dense slots; a constant slot keeps 1."""
        dense = tuple(
            slot.model_copy(
                update={
                    "mean": moments[slot.name][0],
                    "deviation": moments[slot.name][1] if moments[slot.name][1] > 0 else 1.0,
                }
            )
            if slot.name in moments
            else slot
            for slot in self.dense
        )
        return self.model_copy(update={"dense": dense})

    @property
    def outputs(self) -> dict[str, int]:
        """Logits per task (1 for a binary task, 3 for ZILN, …)."""
        return {name: task.num_logits for name, task in self.tasks.items()}

    def write(self, path: Path) -> None:
        """Write `schema.json`."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Schema":
        """Read `schema.json`.

        Raises:
            ConfigError: missing, damaged, or of a newer format.
        """
        import json

        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"there is no schema at {path}; run `infnet prepare` first") from None
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); run `infnet prepare` again") from None
        found = raw.get("format_version") if isinstance(raw, dict) else None
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise ConfigError(
                f"{path} has format_version {found!r}, this program reads up to {FORMAT_VERSION}; "
                "upgrade infnet-ray or prepare the data again"
            )
        from rayrun.config import validate

        return validate(cls, raw, where=str(path))
