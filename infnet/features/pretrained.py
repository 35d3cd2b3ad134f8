"""Pretrained feature: a vector per value of a column, from a file (text or image embeddings)."""

from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import model_validator

from infnet.features import columns as raw
from infnet.features.base import Feature, Fitted, Slots
from infnet.features.hashing import hash_values
from infnet.features.scaled import block
from infnet.schema import DenseSlot
from rayrun import storage
from rayrun.config import ConfigError, Place

MAX_WIDTH = 4096


class PretrainedFeature(Feature):
    """`width` numbers of the row's value, then 0; where the file has none for it, 0s and a 1.

    The vectors are read once, when the features are fitted, and travel with the encoder: scoring
    needs the file no more. Memory: 4 · width bytes per vector in every worker.
    """

    type: Literal["pretrained"] = "pretrained"
    column: str
    """Column of the log whose value has a vector."""
    path: Annotated[str, Place]
    """Parquet file (path or URI) with one row per value."""
    key: str = "id"
    """Column of the file with the value."""
    vector: str = "vector"
    """Column of the file with the list of `width` numbers."""
    width: int

    @model_validator(mode="after")
    def _width_is_possible(self) -> "PretrainedFeature":
        if not 1 <= self.width <= MAX_WIDTH:
            raise ValueError(f"width must be 1 to {MAX_WIDTH}, found {self.width}")
        return self

    def columns(self, name: str) -> frozenset[str]:
        """The column."""
        return frozenset([self.column])

    def read_vectors(self, name: str) -> pa.Table | None:
        """Keys (hashes, ascending) and vectors.

        Raises:
            ConfigError: no such file or column, a vector of another width, a key twice.
        """
        where = f"features.{name}"
        filesystem, path = storage.arrow_filesystem(self.path)
        try:
            table = pq.read_table(path, filesystem=filesystem)
        except FileNotFoundError:
            raise ConfigError(f"{where}.path: there is no file {self.path}") from None
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{where}.path: {self.path} is not readable ({error})") from None
        for setting, wanted in (("key", self.key), ("vector", self.vector)):
            if wanted not in table.column_names:
                raise ConfigError(
                    f"{where}.{setting}: {self.path} has no column {wanted!r}; "
                    f"it has {', '.join(table.column_names)}"
                )
        keys = hash_values(raw.column(table, self.key))
        elements, lengths = raw.lists(raw.column(table, self.vector), 2**31)
        if (lengths != self.width).any():
            found = ", ".join(str(n) for n in np.unique(lengths)[:5])
            raise ConfigError(
                f"{where}.width is {self.width}, the vectors of {self.path} have {found}"
            )
        values = raw.numbers(elements)[0]
        if np.isnan(values).any():
            raise ConfigError(f"{where}: a vector of {self.path} has a number that is not finite")
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        if (keys[1:] == keys[:-1]).any():
            raise ConfigError(f"{where}.key: a value of {self.key} stands twice in {self.path}")
        matrix = values.reshape(-1, self.width)[order]
        return pa.table({"key": pa.array(keys), "vector": block(matrix)})

    def slots(self, name: str, fitted: Fitted) -> Slots:
        """`width` + 1 dense columns."""
        return Slots(dense=(DenseSlot(name=name, width=self.width + 1, kind="pretrained"),))

    def encode(self, name: str, rows: pa.Table, fitted: Fitted) -> dict[str, pa.Array]:
        """`d.<name>`."""
        assert fitted.vectors is not None
        keys = raw.as_numpy(raw.plain(fitted.vectors["key"]))
        matrix = raw.as_numpy(raw.plain(fitted.vectors["vector"]).flatten()).reshape(-1, self.width)
        asked = hash_values(raw.column(rows, self.column))
        result = np.zeros((len(asked), self.width + 1), dtype=np.float32)
        result[:, -1] = 1.0
        if len(keys):
            at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
            found = keys[at] == asked
            result[found, :-1] = matrix[at[found]]
            result[found, -1] = 0.0
        return {f"d.{name}": block(result)}
