"""A registered set: how its files are described, what may be done with it, how to get it."""

from dataclasses import dataclass, field

from rayrun import storage
from rayrun.config import ConfigError
from rayrun.data.columns import Columns, ColumnType
from rayrun.data.description import FileSource, SideTable, TextFormat


@dataclass(frozen=True)
class Preset:
    """Everything the reader needs to know of a public set, and a person of its licence."""

    title: str
    licence: str
    files: tuple[str, ...]
    columns: Columns
    tables: dict[str, SideTable] = field(default_factory=dict[str, SideTable])
    """Side tables that are always joined."""
    optional_tables: dict[str, SideTable] = field(default_factory=dict[str, SideTable])
    """Side tables joined on request only (`source: {type: named, name: …, tables: [NAME]}`)."""
    types: dict[str, ColumnType] = field(default_factory=dict[str, ColumnType])
    text: TextFormat = field(default_factory=TextFormat)
    download: str = ""
    """Name in `rayrun.data.download`, empty where the publisher does not allow or offer it."""
    get: str = ""
    """How a person gets the files where there is no download verb."""

    def how_to_get(self, name: str) -> str:
        """One line: the command, or where to ask."""
        if self.download:
            return (
                f"· {self.title}: infnet download {self.download} --out DIR, then "
                f"INFNET_DATA=DIR (licence: {self.licence})"
            )
        return f"· {self.title}: {self.get}, put it into DIR/{name}/, then INFNET_DATA=DIR"

    def describe(
        self,
        place: str,
        name: str,
        *,
        files: tuple[str, ...],
        tables: tuple[str, ...],
        columns: Columns | None,
    ) -> FileSource:
        """The description of this set below `place`.

        Raises:
            ConfigError: no directory of that name there, or an unknown optional table.
        """
        path = storage.join(place, name)
        if not storage.exists(path):
            raise ConfigError(
                f"INFNET_DATA is {place}, but there is no {name} in it.\n  {self.how_to_get(name)}"
            )
        joined = list(self.tables.values())
        for wanted in tables:
            if wanted not in self.optional_tables:
                known = ", ".join(self.optional_tables) or "none"
                raise ConfigError(
                    f"data.source.tables: {name} has no optional side table {wanted!r}; "
                    f"known: {known}"
                )
            joined.append(self.optional_tables[wanted])
        return FileSource(
            path=path,
            files=files or self.files,
            columns=columns or self.columns,
            tables=tuple(joined),
            types=self.types,
            text=self.text,
        )
