"""Hillstrom's MineThatData e-mail test (2008): 64,000 customers, visit, conversion and spend.

No user, item or time: each row is one customer, so the split is by a hash or at random.
"""

from rayrun.data.columns import Columns, ColumnType
from rayrun.data.preset import Preset

LICENCE = "published for open analysis, no licence text"
TYPES: dict[str, ColumnType] = {
    "recency": "int",
    "history_segment": "text",
    "history": "float",
    "mens": "int",
    "womens": "int",
    "zip_code": "text",
    "newbie": "int",
    "channel": "text",
    "segment": "text",
    "visit": "int",
    "conversion": "int",
    "spend": "float",
}

PRESETS = {
    "hillstrom_official": Preset(
        title="Hillstrom e-mail test, the publisher's CSV",
        licence=LICENCE,
        files=("*illstrom*.csv",),
        columns=Columns(),
        types=TYPES,
        download="hillstrom_official",
    ),
    "hillstrom_convert_spend": Preset(
        title="Hillstrom e-mail test, as Parquet",
        licence=LICENCE,
        files=("customers.parquet",),
        columns=Columns(),
        types=TYPES,
        get="convert the publisher's CSV (hillstrom_official) to customers.parquet",
    ),
}
