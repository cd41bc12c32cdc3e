"""The generated town has all that may be asked about: each kind of question comes out of its drives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from questions import controls, scoring
from questions.making import candidates as spatial
from questions.making import dynamic
from questions.making.candidates import Candidate, look_at
from questions.making.choosing import choose, prompts
from questions.making.describing import Look
from questions.making.motion import Moment, Motion
from questions.making.rules import Rules
from questions.units import KINDS
from shards_schema.poses import to_local
from synthetic import SyntheticConfig, drive_of, log_specs
from synthetic.drive import Drive
from synthetic.pixels import Seen
from synthetic.scenery import Actor
from tests.questions.test_making import document

NOW = 1_600_000_000_000_000
SIGHT = 70.0
"""Metres up to which a drive's things are told."""


def moment(drive: Drive, t: float) -> tuple[Moment, list[Actor]]:
    """What is there at a time, and the boxes of the moment."""
    ego = drive.ego(t)
    pose, boxes = np.array([ego.x, ego.y, ego.yaw]), {}
    actors = [a for a in drive.actors(t) if np.hypot(a.x - ego.x, a.y - ego.y) < SIGHT]
    for a in actors:
        x, y, heading = to_local(np.array([a.x, a.y, a.heading]), pose).tolist()
        boxes[a.track] = np.array([x, y, a.size[2] / 2, *a.size, heading])
    return Moment(NOW + round(t * 1e6), pose, ego.v, boxes), actors


def asked(config: SyntheticConfig, rules: Rules) -> Iterator[Candidate]:
    """What the front camera of each drive gives, second by second."""
    for number, spec in enumerate(log_specs(config)):
        drive = drive_of(config, spec)
        log = [moment(drive, 0.5 * i) for i in range(config.frames)]
        for i in range(3, len(log) - 8, 2):
            now, here = log[i]
            motion = Motion([m for m, _ in log[i - 3 : i + 9]], now.timestamp, exact=True)
            boxes = [tuple(box.tolist()) for box in (now.boxes or {}).values()]
            scene = document(*boxes, names=[a.name for a in here], token=f"{number:08x}{i:08x}", log=spec.name)
            scene["timestamp"] = now.timestamp
            scene["annotations"]["track_tokens"] = [a.track for a in here]
            scene["annotations"]["velocity"] = [[a.vx, a.vy, 0.0] for a in here]
            known = {a.track: Seen(a, 0, 0.0, 0.0) for a in here}
            looks = {track: Look(seen.kind, seen.colour) for track, seen in known.items()}
            image = look_at(scene, "cam_f0", rules, Counter(), looks=looks, motion=motion)
            assert image is not None
            yield from spatial.of_image(image)
            yield from dynamic.of_image(image)


def test_a_town_with_turns_gives_every_kind_and_who_knows_is_right() -> None:
    rules = Rules(image=100, seconds=0, margins=False)
    manoeuvres = ("left_turn", "right_turn", "follow", "red_light", "pedestrian")
    config = SyntheticConfig(logs=5, frames=28, manoeuvres=manoeuvres)
    chosen, _ = choose(list(asked(config, rules)), rules)
    units = [p for c in chosen for p in prompts(c, rules, "a town", "train")]
    told = scoring.by_category(scoring.answered_by(controls.oracle, units), "official")
    assert {name: category.score for name, category in told.items()} == dict.fromkeys(KINDS, pytest.approx(1.0))
    answers = {c.answer for c in chosen if c.category == "ego_turn"}
    assert answers >= {"It did not turn", "To the left", "To the right"}
