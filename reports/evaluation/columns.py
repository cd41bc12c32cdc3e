"""NAVSIM's names of scores, in the order of its own csv files, its abbreviations, and how a mean is shown."""

from __future__ import annotations

from torch import Tensor

from scoring import Version
from scoring.aggregate import MULTIPLICATIVE_V1, MULTIPLICATIVE_V2, WEIGHTS_V1, WEIGHTS_V2
from trainer.tally import mean_known

COMFORT_BETWEEN_FRAMES = "two_frame_extended_comfort"

SUBSCORES: dict[Version, tuple[str, ...]] = {
    "v1": (*MULTIPLICATIVE_V1, *WEIGHTS_V1, "driving_direction_compliance"),
    "v2": (*MULTIPLICATIVE_V2, *WEIGHTS_V2, COMFORT_BETWEEN_FRAMES),
}
"""Columns of the csv of ``run_pdm_score`` (tag v1.1) and ``run_pdm_score_one_stage`` (main), valid to score."""

AVERAGE: dict[Version, str] = {"v1": "average", "v2": "average_all_frames"}
"""The token of the closing row."""

SCORE_NAME: dict[Version, str] = {"v1": "PDMS", "v2": "EPDMS"}

SHORT = {
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "traffic_light_compliance": "TLC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "lane_keeping": "LK",
    "history_comfort": "HC",
    "comfort": "C",
    COMFORT_BETWEEN_FRAMES: "EC",
    "multiplicative_metrics_prod": "product",
}
"""NAVSIM's abbreviations."""


def short(column: str) -> str:
    """NAVSIM's abbreviation of a column, so that tables fit a terminal; the column itself where it has none."""
    return SHORT.get(column, column)


def mean_text(values: Tensor, digits: int) -> str:
    """The mean of the values that are not NaN; "-" where there is none."""
    found = mean_known(values)
    return "-" if found is None else f"{found:.{digits}f}"
