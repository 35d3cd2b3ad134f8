"""Registered sets: presets of the description that any log can be given.

There is one small file per publisher. To add one: write a `Preset` in its file and list it here.
"""

from rayrun.data import hillstrom, kuairand, movielens
from rayrun.data.columns import nearest
from rayrun.data.preset import Preset

PRESETS: dict[str, Preset] = {
    **kuairand.PRESETS,
    **movielens.PRESETS,
    **hillstrom.PRESETS,
}


def names() -> list[str]:
    """All registered names."""
    return sorted(PRESETS)


def preset(name: str) -> Preset:
    """The preset of a registered set.

    Raises:
        ValueError: no such name; names the nearest and lists all.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(
            f"no set is registered under {name!r}{nearest(name, PRESETS)}. Registered: "
            f"{', '.join(names())}. For other files use {{path: …}}"
        ) from None
