"""Titles of the simulated videos, in English and Chinese, spoken from their topic and style."""

from typing import Any

import numpy as np

TOPICS = (
    ("cooking", "美食"),
    ("hiking", "徒步"),
    ("football", "足球"),
    ("makeup", "美妆"),
    ("guitar", "吉他"),
    ("gardening", "园艺"),
    ("woodwork", "木工"),
    ("street dance", "街舞"),
    ("fishing", "钓鱼"),
    ("history", "历史"),
    ("pets", "萌宠"),
    ("mobile games", "手游"),
)
STYLES = (
    ("quiet {} diary", "安静的{}日记"),
    ("{} in one minute", "一分钟学{}"),
    ("the funniest {} moments", "{}爆笑瞬间"),
    ("{} for beginners", "零基础学{}"),
    ("{} challenge", "{}挑战赛"),
    ("live {} talk", "{}直播聊天"),
)


def titles(
    topic: Any, style: Any, popularity: Any, first: int, end: int
) -> tuple[list[str], list[str]]:
    """Titles of videos first … end−1 of a catalogue; all titles of one catalogue differ.

    The number in a title counts the videos of the same topic and style, the most watched first: as
    with any series, a title tells something of how many want to see it.
    """
    kind = np.asarray(topic) * len(STYLES) + np.asarray(style)
    order = np.lexsort((-np.asarray(popularity), kind))
    starts = np.searchsorted(kind[order], np.arange(len(TOPICS) * len(STYLES)))
    number = np.empty(len(kind), dtype=np.int64)
    number[order] = np.arange(len(kind)) - starts[kind[order]] + 1
    english: list[str] = []
    chinese: list[str] = []
    for item in range(first, end):
        thing, style_of = TOPICS[int(topic[item])], STYLES[int(style[item])]
        text = style_of[0].format(thing[0])
        english.append(f"{text[0].upper()}{text[1:]}, part {number[item]}")
        chinese.append(f"{style_of[1].format(thing[1])} 第{number[item]}集")
    return english, chinese
