"""KuaiRand (Gao et al., CIKM 2022, arXiv:2208.08696): short-video logs with twelve signals.

File and column names are those of the publisher's README. `video_features_statistic_*` counts over
the whole month, later days included: joining it leaks the future, so it is joined only on request.
The random logs (`is_rand` = 1) are read with `files: log_random_*`.
"""

from rayrun.data.columns import Columns, ColumnType, TimeColumn
from rayrun.data.description import SideTable
from rayrun.data.preset import Preset

LICENCE = "CC BY-SA 4.0"
COLUMNS = Columns(user="user_id", item="video_id", time=TimeColumn(column="time_ms", unit="ms"))

SIGNALS = [
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "is_profile_enter",
    "is_rand",
]
LOG_TYPES: dict[str, ColumnType] = dict.fromkeys(
    [
        *["user_id", "video_id", "date", "hourmin", "time_ms", "play_time_ms", "duration_ms"],
        *["profile_stay_time", "comment_stay_time", "tab"],
        *SIGNALS,
    ],
    "int",
)
USER_TYPES: dict[str, ColumnType] = {
    **dict.fromkeys(
        [
            *["user_id", "is_lowactive_period", "is_live_streamer", "is_video_author"],
            *["follow_user_num", "fans_user_num", "friend_user_num", "register_days"],
            *(f"onehot_feat{i}" for i in range(18)),
        ],
        "int",
    ),
    **dict.fromkeys(
        [
            "user_active_degree",
            *(f"{n}_range" for n in ("follow_user_num", "fans_user_num", "friend_user_num")),
            "register_days_range",
        ],
        "text",
    ),
}
VIDEO_TYPES: dict[str, ColumnType] = {
    "video_id": "int",
    "author_id": "int",
    "video_type": "text",
    "upload_dt": "text",
    "upload_type": "text",
    "visible_status": "int",
    "video_duration": "float",
    "server_width": "int",
    "server_height": "int",
    "music_id": "int",
    "music_type": "int",
    "tag": "list[int]",
}


def _official(size: str, *, download: bool) -> Preset:
    return Preset(
        title=f"KuaiRand-{size}",
        licence=LICENCE,
        files=("log_standard_*.csv",),
        columns=COLUMNS,
        types=LOG_TYPES,
        tables={
            "users": SideTable(path="user_features_*.csv", key="user_id", types=USER_TYPES),
            "videos": SideTable(
                path="video_features_basic_*.csv", key="video_id", types=VIDEO_TYPES
            ),
        },
        optional_tables={
            "statistics": SideTable(
                path="video_features_statistic_*.csv", key="video_id", prefix="month."
            )
        },
        download=f"kuairand_{size.lower()}" if download else "",
        get="ask the publisher, https://kuairand.com",
    )


PRESETS = {
    "kuairand_pure": _official("Pure", download=True),
    "kuairand_1k": _official("1K", download=True),
    "kuairand_27k": _official("27K", download=True),
    "kuairand27k_explicit": Preset(
        title="KuaiRand-27K, interactions with like or hate",
        licence=LICENCE,
        files=("interactions.parquet",),
        columns=COLUMNS,
        tables={"users": SideTable(path="user_features.parquet", key="user_id")},
        get="a sample of 41,712 rows selected on like or hate, made from KuaiRand-27K",
    ),
}
