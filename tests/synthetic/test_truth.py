"""What the town knows of its images: kinds, colours, and what is hidden, held against the pictures themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shards_schema.errors import DatasetError, MissingFileError
from synthetic import MARKER, pixels, truth
from synthetic.config import SyntheticConfig
from synthetic.logs import drive_of, frame_tokens, log_specs, timestamps, track_token
from synthetic.render import Renderer

CONFIG = SyntheticConfig(seed=5, logs=1, frames=8, width=240, height=135, manoeuvres=("left_turn",), processes=1)
SPEC = log_specs(CONFIG)[0]
TOKEN = frame_tokens(CONFIG, SPEC)[4]
T = (timestamps(CONFIG, SPEC)[4] - SPEC.start) / 1e6


@pytest.fixture(scope="module")
def rows() -> list[truth.Shown]:
    return list(truth.shown(CONFIG, {TOKEN}, ["CAM_F0", "CAM_B0"]))


def test_every_actor_in_an_image_has_a_row(rows: list[truth.Shown]) -> None:
    assert len({(row.channel, row.track) for row in rows}) == len(rows)
    assert {row.channel for row in rows} == {"CAM_F0", "CAM_B0"}
    actors = {track_token(CONFIG, SPEC, a): a for a in drive_of(CONFIG, SPEC).actors(T)}
    for row in rows:
        actor = actors[row.track]
        assert 0.0 <= row.hidden <= 1.0
        assert row.kind == pixels.WORDS.get(actor.kind)
        assert row.colour is None or actor.colour in pixels.COLOURS[row.colour]
    assert {row.colour for row in rows} > {"red", "white"}
    assert min(row.hidden for row in rows) == 0.0
    assert max(row.hidden for row in rows) == 1.0


def test_what_shows_of_an_actor_goes_with_it(rows: list[truth.Shown], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an actor the picture is another one in the pixels that showed it (and in those of its shadow)."""
    renderer = Renderer(drive_of(CONFIG, SPEC), CONFIG.width, CONFIG.height)
    actors = renderer.drive.actors(T)
    seen = {channel: image.astype(int) for channel, image in renderer.frame(T, ["CAM_F0", "CAM_B0"]).items()}
    showing = [row for row in rows if row.pixels * (1 - row.hidden) > 10]
    assert len(showing) > 2
    for row in showing:
        without = [actor for actor in actors if track_token(CONFIG, SPEC, actor) != row.track]
        monkeypatch.setattr(renderer.drive, "actors", lambda t, left=without: left)
        image = renderer.frame(T, [row.channel])[row.channel].astype(int)
        changed = np.count_nonzero(np.abs(image - seen[row.channel]).max(-1) > 8)
        assert changed > 0.6 * row.pixels * (1 - row.hidden)


def test_rows_are_the_same_whatever_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "_FRAMES", 1)
    small = {"logs": 2, "frames": 4, "width": 96, "height": 54}
    one, two = (CONFIG.model_copy(update={**small, "processes": n}) for n in (1, 2))
    tokens = {frame_tokens(two, spec)[n] for spec in log_specs(two) for n in (0, 2)}
    rows = list(truth.shown(two, tokens, ["CAM_F0"]))
    assert rows == list(truth.shown(one, tokens, ["CAM_F0"]))
    assert {row.token for row in rows} == tokens


def test_a_folder_of_another_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        truth.config_of(tmp_path)
    (tmp_path / MARKER).write_text(json.dumps({"config": {**CONFIG.identity(), "generator": "another"}}))
    with pytest.raises(DatasetError, match="another generator"):
        truth.config_of(tmp_path)
    (tmp_path / MARKER).write_text(json.dumps({"config": CONFIG.identity()}))
    assert truth.config_of(tmp_path).identity() == CONFIG.identity()
