"""MovieLens-1M (GroupLens; Harper & Konstan 2015): research use only, not to be redistributed."""

from rayrun.data.columns import Columns, TimeColumn
from rayrun.data.description import SideTable, TextFormat
from rayrun.data.preset import Preset

LICENCE = "research only, no redistribution, no commercial use without permission"


def _dat(*header: str) -> TextFormat:
    # The official files are Latin-1, without header or quotes; genres are joined by a bar.
    return TextFormat(
        delimiter="::", encoding="latin-1", header=header, quote="", list_separator="|"
    )


PRESETS = {
    "movielens_1m_official": Preset(
        title="MovieLens-1M, official files (ratings.dat, users.dat, movies.dat)",
        licence=LICENCE,
        files=("ratings.dat",),
        columns=Columns(
            user="user_id", item="movie_id", time=TimeColumn(column="timestamp", unit="s")
        ),
        types={"user_id": "int", "movie_id": "int", "rating": "int", "timestamp": "int"},
        text=_dat("user_id", "movie_id", "rating", "timestamp"),
        tables={
            "users": SideTable(
                path="users.dat",
                key="user_id",
                text=_dat("user_id", "gender", "age", "occupation", "zip"),
                types={
                    "user_id": "int",
                    "gender": "text",
                    "age": "int",
                    "occupation": "int",
                    "zip": "text",
                },
            ),
            "movies": SideTable(
                path="movies.dat",
                key="movie_id",
                text=_dat("movie_id", "title", "genres"),
                types={"movie_id": "int", "title": "text", "genres": "list"},
            ),
        },
        download="movielens_1m_official",
    ),
    "movielens_1m_collm": Preset(
        title="MovieLens-1M in the split of the CoLLM paper",
        licence=LICENCE,
        files=("samples.parquet",),
        columns=Columns(
            user="user_id", item="item_id", time=TimeColumn(column="timestamp", unit="s")
        ),
        tables={"items": SideTable(path="items.parquet", key="item_id")},
        get="samples.parquet and items.parquet made from github.com/zyang1580/CoLLM",
    ),
}
