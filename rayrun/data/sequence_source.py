"""Where histories with titles come from: `data.source` of the language-model recommender.

    source: amazon_games2018_seq                       # a registered set, below $INFNET_DATA
    source: {path: log.csv, columns: {user: uid, item: asin, time: {column: ts}, title: name}}
    source: {type: simulate, users: 2000, items: 2000, language: both}

`rayrun.data.sequences.open_sequences` reads any of them.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from rayrun.config import Config
from rayrun.data.columns import Columns, TimeColumn, nearest
from rayrun.data.description import FileSource
from rayrun.data.source import from_name, source_kind
from rayrun.data.world import DAYS, SimulateSource

Language = Literal["en", "zh", "both"]


class TitledColumns(Columns):
    """Roles of the columns of a log whose items have titles."""

    user: str  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    time: TimeColumn  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    title: str
    """What the item is called; a side table may bring it."""
    rating: str | None = None
    """Stars that the user gave, a whole number from 1 to 5 in every row."""

    def names(self) -> dict[str, str]:
        """Role → column, of the roles that are set."""
        rating = {} if self.rating is None else {"rating": self.rating}
        return {**super().names(), "title": self.title, **rating}


class TitledPathSource(FileSource):
    """Any log in files with a column of titles: one row for each event. Without the role `item`,
    rows of equal title are of one item.
    """

    type: Literal["path"] = "path"
    columns: TitledColumns  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


class NamedSequences(Config):
    """A registered set of histories, read from `$INFNET_DATA/NAME/`."""

    type: Literal["named"] = "named"
    name: str

    @field_validator("name")
    @classmethod
    def _registered(cls, name: str) -> str:
        if name not in SETS:
            raise ValueError(
                f"no set of histories is registered under {name!r}{nearest(name, SETS)}. "
                f"Registered: {', '.join(SETS)}. For other files use {{path: …}}"
            )
        return name


class SimulatedSequences(SimulateSource):
    """The simulated world: a history is the videos that a user clicked, in order of time."""

    language: Language = "en"
    """Of the titles; `both`: the English one and the Chinese one after it."""
    ratings: bool = False
    """With the stars that each user gives what was clicked (`rayrun.data.world.stars`)."""
    days: float = Field(default=DAYS, gt=0, le=DAYS)
    """Days of the log that are read, of its 14. Fewer where another model, which reads something
    learnt here, is tested on what comes after them."""


SETS: dict[str, str] = {
    "amazon_games2018_seq": "Amazon Video Games 2018, full histories with titles",
    "amazon_beauty2014_seq": "Amazon Beauty 2014, 5-core, short textual ids as titles",
    "amazon_toys2014_seq": "Amazon Toys 2014, 5-core, short textual ids as titles",
    "movielens_1m_collm": "MovieLens-1M in the split of the CoLLM paper, with likes and dislikes",
    "movielens_100k": "MovieLens-100K, full histories with titles and ratings",
}
"""Registered sets of histories."""


SequenceSource = Annotated[
    Annotated[NamedSequences, BeforeValidator(from_name), Tag("name")]
    | Annotated[NamedSequences, Tag("named")]
    | Annotated[TitledPathSource, Tag("path")]
    | Annotated[SimulatedSequences, Tag("simulate")],
    Discriminator(
        source_kind,
        custom_error_type="source",
        custom_error_message=(
            "a source of histories is the name of a registered set ("
            + ", ".join(SETS)
            + "), {path: …, columns: {user, item, time, title}}, or "
            "{type: named | path | simulate, …}"
        ),
    ),
]
"""A registered name, files with a column of titles, or the simulator."""


class SequenceData(Config):
    """Histories with titles: where from, and which users of them."""

    source: SequenceSource
    users: Annotated[int, Field(ge=0)] = 0
    """Users taken, by a stable hash of their ids; 0: all."""
    seed: int = 0
    """Of that hash."""
    max_empty_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """More items without a title than this share fail the run; fewer, and their events, are left
    out."""
