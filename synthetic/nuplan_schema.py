"""nuPlan's tables as our writer makes them: names, columns, types and keys of nuplan-devkit's models, no index.

The devkit declares none; whether the published logs have any could not be seen (docs/sources.md), so ours have only
those that SQLite makes of the primary keys. Tokens are BLOBs of 8 bytes, calibrations pickled lists. One column is
laxer than there: ``scenario_tag.agent_track_token`` may be NULL, since our tags tell the ego's manoeuvre, no agent's.
"""

from __future__ import annotations

from typing import Final

_TOKEN: Final = "BLOB NOT NULL"
_LINK: Final = "BLOB"

TABLES: Final[dict[str, dict[str, str]]] = {
    "category": {"token": _TOKEN, "name": "VARCHAR(64)", "description": "TEXT"},
    "log": {
        "token": _TOKEN,
        "vehicle_name": "VARCHAR(64)",
        "date": "VARCHAR(64)",
        "timestamp": "INTEGER",
        "logfile": "VARCHAR(64)",
        "location": "VARCHAR(64)",
        "map_version": "VARCHAR(64)",
    },
    "camera": {
        "token": _TOKEN,
        "log_token": _TOKEN,
        "channel": "VARCHAR(64)",
        "model": "VARCHAR(64)",
        "translation": "BLOB",
        "rotation": "BLOB",
        "intrinsic": "BLOB",
        "distortion": "BLOB",
        "width": "INTEGER",
        "height": "INTEGER",
    },
    "ego_pose": {
        "token": _TOKEN,
        "timestamp": "INTEGER",
        **dict.fromkeys(("x", "y", "z", "qw", "qx", "qy", "qz", "vx", "vy", "vz"), "FLOAT"),
        **{f"{what}_{axis}": "FLOAT" for what in ("acceleration", "angular_rate") for axis in "xyz"},
        "epsg": "INTEGER",
        "log_token": _TOKEN,
    },
    "lidar": {
        "token": _TOKEN,
        "log_token": _TOKEN,
        "channel": "VARCHAR(64)",
        "model": "VARCHAR(64)",
        "translation": "BLOB",
        "rotation": "BLOB",
    },
    "track": {
        "token": _TOKEN,
        "category_token": _TOKEN,
        **dict.fromkeys(("width", "length", "height"), "FLOAT"),
    },
    "image": {
        "token": _TOKEN,
        "next_token": _LINK,
        "prev_token": _LINK,
        "ego_pose_token": _TOKEN,
        "camera_token": _TOKEN,
        "filename_jpg": "VARCHAR(128)",
        "timestamp": "INTEGER",
    },
    "scene": {
        "token": _TOKEN,
        "log_token": _TOKEN,
        "name": "TEXT",
        "goal_ego_pose_token": _LINK,
        "roadblock_ids": "TEXT",
    },
    "lidar_pc": {
        "token": _TOKEN,
        "next_token": _LINK,
        "prev_token": _LINK,
        "ego_pose_token": _TOKEN,
        "lidar_token": _TOKEN,
        "scene_token": _TOKEN,
        "filename": "VARCHAR(128)",
        "timestamp": "INTEGER",
    },
    "lidar_box": {
        "token": _TOKEN,
        "lidar_pc_token": _TOKEN,
        "track_token": _LINK,
        "next_token": _LINK,
        "prev_token": _LINK,
        **dict.fromkeys(("x", "y", "z", "width", "length", "height", "vx", "vy", "vz", "yaw", "confidence"), "FLOAT"),
    },
    "scenario_tag": {
        "token": _TOKEN,
        "lidar_pc_token": _TOKEN,
        "type": "TEXT",
        "agent_track_token": _LINK,
    },
    "traffic_light_status": {
        "token": _TOKEN,
        "lidar_pc_token": _TOKEN,
        "lane_connector_id": "INTEGER",
        "status": "VARCHAR(8)",
    },
}
"""Table -> column -> type, tables in an order in which each refers to earlier ones (or to itself)."""

_REFERS: Final = {
    "goal_ego_pose_token": "ego_pose",
    "agent_track_token": "track",
    **{f"{name}_token": name for name in TABLES},
}


def create_table(name: str) -> str:
    """The statement that makes a table."""
    columns = TABLES[name]
    parts = [f"{column} {kind}" for column, kind in columns.items()]
    parts.append("PRIMARY KEY (token)")
    for column in columns:
        other = name if column in ("next_token", "prev_token") else _REFERS.get(column)
        if other is not None and column != "token":
            parts.append(f"FOREIGN KEY ({column}) REFERENCES {other} (token)")
    return f"CREATE TABLE {name} ({', '.join(parts)})"


def insert(name: str) -> str:
    """The statement that adds a row, values in the order of the columns."""
    return f"INSERT INTO {name} VALUES ({', '.join('?' * len(TABLES[name]))})"
