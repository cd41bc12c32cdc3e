"""Units about motion: what is true of car and tracks, what is too near to a limit, what text alone does not tell."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from questions import controls, options, scoring
from questions.answers import read
from questions.making import dynamic
from questions.making.candidates import Candidate, Refused, look_at, of_image
from questions.making.choosing import LEAST, choose, prompts
from questions.making.describing import Look
from questions.making.dynamic import speed_ranges, speed_word, turn_word
from questions.making.motion import GapError, Moment, Motion
from questions.making.rules import Rules
from questions.outputs import Output
from questions.units import KINDS, Prompt, units_of
from questions.wording import whole
from shards_schema.poses import to_local
from tests.questions.test_making import CAR, document, turned
from tests.questions_toys import prompt

NOW = 1_600_000_000_000_000
TIMES = [0.5 * step for step in range(-4, 11)]
DYNAMIC = [name for name, kind in KINDS.items() if kind.part]
Path = Callable[[float], tuple[float, float, float]]
"""Seconds from now -> x, y, heading in the world."""


def along(x: float, y: float, speed: float, heading: float = 0.0) -> Path:
    return lambda t: (x + speed * t * math.cos(heading), y + speed * t * math.sin(heading), heading)


def moment(t: float, ego: Path, tracks: Mapping[str, Path], speed: Callable[[float], float]) -> Moment:
    pose = np.array(ego(t))
    boxes = {}
    for name, path in tracks.items():
        x, y, heading = to_local(np.array(path(t)), pose).tolist()
        boxes[name] = np.array([x, y, 0.8, *CAR, heading])
    return Moment(NOW + round(t * 1e6), pose, speed(t), boxes)


def motion_of(
    ego: Path,
    tracks: Mapping[str, Path],
    speed: Callable[[float], float] = lambda t: 0.0,
    times: Sequence[float] = TIMES,
    *,
    exact: bool = True,
) -> Motion:
    return Motion([moment(t, ego, tracks, speed) for t in times], NOW, exact=exact)


def scene_of(motion: Motion, names: Sequence[str] = (), **given: Any) -> dict[str, Any]:
    """The document of now, whose labels are those of the motion."""
    boxes = motion.at(0.0).boxes or {}
    scene = document(*(tuple(box.tolist()) for box in boxes.values()), names=names, timestamp=NOW, **given)
    scene["annotations"]["track_tokens"] = [*boxes]
    scene["annotations"]["velocity"] = [[*motion.velocity(track).tolist(), 0.0] for track in boxes]
    scene["frames"] = [{"step": i, "token": f"frame{i}", "timestamp": NOW + 500_000 * i} for i in range(-3, 11)]
    return scene


def found(
    motion: Motion,
    rules: Rules | None = None,
    refused: Refused | None = None,
    looks: Mapping[str, Look] | None = None,
    **given: Any,
) -> dict[str, list[Candidate]]:
    scene = scene_of(motion, **given)
    counts = Counter() if refused is None else refused
    image = look_at(scene, "cam_f0", rules or Rules(), counts, hidden={}, looks=looks, motion=motion)
    assert image is not None
    out: dict[str, list[Candidate]] = {}
    for candidate in dynamic.of_image(image):
        out.setdefault(candidate.category, []).append(candidate)
    return out


def only(candidates: Sequence[Candidate]) -> Candidate:
    (one,) = candidates
    return one


# --- the worked examples


def test_the_car_slows_down() -> None:
    assert speed_word(6.0, 4.2, 1.5, Rules()) == "It slowed down"
    motion = motion_of(along(0, 0, 5), {}, lambda t: 4.2 - 1.2 * t, times=[-1.5, 0.0])
    four, three = found(motion)["ego_speed"]  # with all answers, and for drives in which nobody stands
    assert four.answers.right == three.answers.right == ("It slowed down",)
    assert {*four.answers.options} - {*three.answers.options} == {"It stood"}
    assert (four.classes, three.classes) == (4, 3)


def test_a_distance_that_gets_less_is_closer_and_not_farther() -> None:
    ego = along(0, 0, 0)
    motion = motion_of(ego, {"a": lambda t: (16.9 - 1.5 * t, 0.0, 0.0)})
    assert motion.distance("a", -1.0) == pytest.approx(18.4)
    closing = only(found(motion)["closing"])
    assert closing.answers.right == ("Yes", "No")
    asked = [*prompts(closing, Rules(), "shards-dynamics", "train")]
    assert [p.question for p in asked] == [
        "Over the last second, did the vehicle get closer to the car that carries the camera?",
        "Over the last second, did the vehicle get farther from the car that carries the camera?",
    ]


def test_a_parked_car_stands_and_comes_closer() -> None:
    motion = motion_of(along(0, 0, 8), {"parked": along(30, 3, 0.05)})
    told = found(motion)
    assert only(told["closing"]).answer == "closer"
    moves = only(told["moves"])
    assert (moves.answer, moves.answers.right) == ("standing", ("No", "Yes"))
    assert moves.wanted
    assert only(told["closing"]).wanted
    assert "heading_motion" not in told
    assert "speed_range" not in told


@pytest.mark.parametrize(
    ("said", "score", "error"),
    [("[23.1, -3.0]", 1.0, 0.92), ("[21.0, -3.2]", 0.0, 3.0), ("[24.0, -3.2, 1, 1]", 0.0, None), ("ahead", 0.0, None)],
)
def test_a_place_is_right_within_a_share_of_the_way(said: str, score: float, error: float | None) -> None:
    asked = prompt("where_later", answer="[24.0, -3.2]", tolerance=max(1.0, 0.2 * 9))
    reading = read(asked, f"<answer>{said}</answer>", "official")
    assert reading.score == score
    assert reading.error == (None if error is None else pytest.approx(error, abs=0.01))
    assert reading.invalid == ("no_point" if error is None else None)


def test_where_a_thing_will_be_is_told_from_where_the_car_is_now() -> None:
    motion = motion_of(along(100, 50, 6, math.pi / 2), {"a": along(103.2, 65, 4.5, math.pi / 2)})
    unit = only(found(motion)["where_later"])
    assert unit.answers.right == ("[24.0, -3.2]",)
    assert unit.tolerance == pytest.approx(1.8)
    (asked,) = prompts(unit, Rules(), "shards-dynamics", "train")
    assert read(asked, controls.oracle(asked), "official").score == 1.0


# --- classes and their limits


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (0.0, 0.29, "It stood"),
        (0.0, 0.31, None),  # stands no more, and has not sped up
        (5.0, 5.76, "It sped up"),
        (5.0, 5.74, None),
        (5.0, 5.29, "It kept its speed"),
        (5.0, 5.31, None),
        (5.0, 4.24, "It slowed down"),
    ],
)
def test_what_the_car_did_with_its_speed(before: float, after: float, word: str | None) -> None:
    assert speed_word(before, after, 1.5, Rules()) == word


@pytest.mark.parametrize(
    ("degrees", "scale", "word"),
    [
        (5.1, 1, "To the left"),
        (-5.1, 1, "To the right"),
        (1.9, 1, "It did not turn"),
        (3, 1, None),
        (9.9, 2, None),
        (10.1, 2, "To the left"),
        (3.9, 2, "It did not turn"),
    ],
)
def test_which_way_the_car_turned(degrees: float, scale: float, word: str | None) -> None:
    assert turn_word(degrees, Rules(), scale) == word


def test_turns_are_those_of_the_car_and_of_the_future_where_that_is_asked() -> None:
    def left(t: float) -> tuple[float, float, float]:
        return 30 * math.sin(t / 10), 30 * (1 - math.cos(t / 10)), t / 10

    told = found(motion_of(left, {}, lambda t: 3.0))
    assert {c.answers.right for c in told["ego_turn"]} == {("To the left",)}
    assert sorted(len(c.answers.options) for c in told["ego_turn"]) == [2, 3]
    assert {c.answers.right[0] for c in told["ego_next"]} == {"It will turn to the left", "It will keep its speed"}
    assert [p.objects for p in prompts(told["ego_turn"][0], Rules(), "shards-dynamics", "train")] == [()]


@pytest.mark.parametrize(
    ("category", "speed", "answer"),
    [
        ("moves", 0.1, "standing"),
        ("moves", 0.5, None),
        ("moves", 1.1, "moving"),
        ("closing", -1.1, "closer"),
        ("closing", 0.5, None),
        ("closing", 0.2, "same"),
        ("closing", 1.1, "farther"),
        ("gap_later", 1.1, "larger"),
        ("gap_later", -1.1, "smaller"),
        ("gap_later", 0.2, "same"),
        ("gap_later", 0.5, None),
    ],
)
def test_what_is_too_near_to_a_limit_is_not_asked(category: str, speed: float, answer: str | None) -> None:
    told = found(motion_of(along(0, 0, 0), {"a": along(20, 0, speed)}))
    assert [c.answer for c in told.get(category, [])] == ([answer] if answer else [])
    exact = found(motion_of(along(0, 0, 0), {"a": along(20, 0, speed)}), Rules(margins=False))
    assert len(exact[category]) == 1


@pytest.mark.parametrize("camera", [0.0, 55.0, 180.0])
@pytest.mark.parametrize(
    ("degrees", "word"), [(0, "North"), (90, "West"), (180, "South"), (-90, "East"), (-40, "Northeast")]
)
def test_the_way_over_the_ground_is_told_as_the_camera_looks_now(camera: float, degrees: int, word: str) -> None:
    x, y = 20 * math.cos(math.radians(camera)), 20 * math.sin(math.radians(camera))
    heading = math.radians(degrees + camera)
    motion = motion_of(along(0, 0, 9), {"a": along(x + 1.65, y, 3, heading)})
    unit = only(found(motion, rotation=turned(camera))["heading_motion"])
    assert unit.answers.right == (word, options.OPPOSITE[word])


def test_the_faster_of_two() -> None:
    looks = {"a": Look("car", "red"), "b": Look("car", "blue")}
    tell = partial(found, looks=looks)
    one = only(tell(motion_of(along(0, 0, 5), {"a": along(20, 3, 6), "b": along(20, -3, 4.4)}))["faster"])
    assert one.answers.right == ("The red car", "The blue car")
    assert "faster" not in tell(motion_of(along(0, 0, 5), {"a": along(20, 3, 6), "b": along(20, -3, 5)}))
    same = only(tell(motion_of(along(0, 0, 5), {"a": along(20, 3, 6), "b": along(20, -3, 5.6)}))["faster"])
    assert set(same.answers.right) == {options.SAME}


def test_which_of_two_the_driven_path_comes_nearer_to() -> None:
    looks = {"near": Look("car", "red"), "far": Look("car", "blue")}
    # the far one is nearer now, but it drives off; the path passes the other at three metres
    motion = motion_of(along(0, 0, 8), {"near": along(25, 4, 0), "far": along(14, -4, 12)})
    unit = only(found(motion, looks=looks)["first"])
    assert unit.answers.right == ("The red car", "The blue car")
    gap = motion.nearest("near")
    assert gap == pytest.approx(4 - CAR[1] / 2 - 2.297 / 2, abs=0.01)


# --- what is not there


def test_what_no_earlier_picture_shows_is_not_asked_as_observed() -> None:
    def hidden_before(t: float) -> tuple[float, float, float]:
        return (20.0, 0.0, 0.0) if t >= 0 else (20.0, 60.0, 0.0)  # it was beside the picture

    refused: Refused = Counter()
    told = found(motion_of(along(0, 0, 0), {"a": hidden_before}), refused=refused)
    assert {"moves", "closing", "speed_range", "heading_motion"}.isdisjoint(told)
    assert refused["moves", "unseen_before"] == 1
    behind = {"wall": along(8, 0, 0), "a": lambda t: (25.0, 0.0 if t < 0 else 10.0, 0.0)}  # hidden by a nearer one
    assert {c.seen[0].track for c in found(motion_of(along(0, 0, 0), behind)).get("moves", [])} == {"wall"}
    assert {c.seen[0].track for c in found(motion_of(along(0, 0, 0), behind))["gap_later"]} == {"wall", "a"}


def test_a_frame_or_a_track_that_is_missing_gives_no_unit() -> None:
    tracks = {"a": along(20, 0, 3)}
    refused: Refused = Counter()
    told = found(motion_of(along(0, 0, 5), tracks, times=[-0.5, 0.0, 0.5]), refused=refused)
    assert {"closing", "gap_later", "where_later", "ego_speed", "ego_next"}.isdisjoint(told)
    assert told["moves"]
    assert refused["ego_speed", "no_frame"] == refused["where_later", "no_frame"] == 1
    moments = [moment(t, along(0, 0, 5), tracks if t != -1.0 else {}, lambda t: 5.0) for t in TIMES]
    refused.clear()
    told = found(Motion(moments, NOW, exact=True), refused=refused)
    assert "closing" not in told
    assert refused["closing", "no_track"] == 1
    alone = Motion([moment(0.0, along(0, 0, 5), tracks, lambda t: 5.0)], NOW, exact=True)
    with pytest.raises(GapError, match="no_frame"):
        alone.velocity("a")
    one_sided = motion_of(along(0, 0, 5), tracks, times=[-0.5, 0.0])
    assert one_sided.speed("a") == pytest.approx(3.0)


def test_labels_whose_own_velocity_says_otherwise_are_dropped() -> None:
    motion = motion_of(along(0, 0, 5), {"a": along(20, 0, 3)}, exact=False)
    assert "moves" in found(motion)
    scene = scene_of(motion)
    refused: Refused = Counter()
    scene["annotations"]["velocity"] = [[4.1, 0.0, 0.0]]
    image = look_at(scene, "cam_f0", Rules(), refused, hidden={}, motion=motion)
    assert image is not None
    assert [c for c in dynamic.of_image(image) if c.seen] == []
    assert refused["moves", "velocity"] == 1


def test_a_heading_that_flips_while_a_vehicle_stands_is_not_asked_about() -> None:
    def flipping(t: float) -> tuple[float, float, float]:
        return 20.0, 0.0, math.pi if t == 0.5 else 0.0

    for exact, asked in ((False, 0), (True, 1)):
        motion = motion_of(along(0, 0, 5), {"a": flipping}, exact=exact)
        refused: Refused = Counter()
        image = look_at(scene_of(motion), "cam_f0", Rules(), refused, hidden={}, motion=motion)
        assert image is not None
        assert len([c for c in of_image(image) if c.category == "yaw"]) == asked
        assert refused["yaw", "flip"] == 1 - asked


def test_no_motion_no_unit() -> None:
    image = look_at(document(), "cam_f0", Rules(), Counter())
    assert image is not None
    assert [*dynamic.of_image(image)] == []


# --- ranges


def test_ranges_of_speed_give_nothing_away() -> None:
    generator = random.Random(0)
    for _ in range(4000):
        speed, place, width = generator.uniform(1, 20), generator.randrange(3), generator.choice((2, 4))
        ranges = speed_ranges(speed, place, width, generator, margins=True)
        if ranges is None:
            continue
        assert {high - low for low, high in ranges} == {width}
        assert [b[0] - a[1] for a, b in pairwise(ranges)] == [1, 1]
        assert ranges[0][0] >= 0
        assert [low < speed < high for low, high in ranges] == [k == place for k in range(3)]
        assert (sum(ranges[1]) / 2 < 6) == (width == 2)  # so that the width says nothing of which one it is
    assert controls.range_of(options.speed_text((4, 8))) == (4, 8)


# --- the choice


def many(count: int = 150) -> list[Candidate]:
    """Candidates of random scenes, 20 of a log, half a second apart."""
    generator = random.Random(3)
    out: list[Candidate] = []
    looks = [("car", "red"), ("car", "blue"), ("bus", "white"), ("car", "green"), ("bus", "black"), ("car", "yellow")]
    for n in range(count):
        speed, jerk = generator.choice((0, 4, 8, 8)), generator.choice((-0.8, 0, 0.8))
        bend = generator.choice((-0.08, 0.0, 0.08)) * (speed > 0)

        def ego(t: float, speed: float = speed, bend: float = bend) -> tuple[float, float, float]:
            if not bend:
                return speed * t, 0.0, 0.0
            return speed / bend * math.sin(bend * t), speed / bend * (1 - math.cos(bend * t)), bend * t

        tracks = {
            f"{n}.{i}": along(
                generator.uniform(8, 55),
                generator.uniform(-9, 9),
                generator.choice((0, generator.uniform(1.2, 14))),
                generator.uniform(-math.pi, math.pi),
            )
            for i in range(len(looks))
        }
        motion = motion_of(ego, tracks, lambda t, s=speed, j=jerk: max(0.0, s + j * t))  # type: ignore[misc]
        scene = scene_of(motion, token=f"{n:016x}", log=f"log{n // 20}")
        for stamped in (scene, *scene["frames"]):
            stamped["timestamp"] += 500_000 * (n % 20)
        known = dict(zip(tracks, (Look(*kind) for kind in looks), strict=True))
        image = look_at(scene, "cam_f0", Rules(), Counter(), hidden={}, looks=known, motion=motion)
        assert image is not None
        out += dynamic.of_image(image)
    return out


@pytest.fixture(scope="module")
def chosen() -> tuple[list[Candidate], list[Prompt]]:
    rules = Rules(image=100, seconds=0)
    candidates, _ = choose(many(), rules)
    return candidates, [p for c in candidates for p in prompts(c, rules, "shards-dynamics", "train")]


def test_answers_are_balanced_and_every_kind_is_asked(chosen: tuple[list[Candidate], list[Prompt]]) -> None:
    candidates, units = chosen
    assert {p.category for p in units} == {*DYNAMIC}
    answers = Counter((c.category, c.within, c.answer) for c in candidates)
    for category, within in {key[:2] for key in answers}:
        found = [n for (c, w, _), n in answers.items() if (c, w) == (category, within)]
        assert len({*found}) == 1
        assert len(found) >= next(c.classes for c in candidates if (c.category, c.within) == (category, within))
    for category in LEAST:
        wanted = [c.wanted for c in candidates if c.category == category]
        assert sum(wanted) >= 0.2 * len(wanted)
    assert len(units_of(units)) == len(candidates)


def test_who_knows_is_right_and_who_reads_the_text_alone_is_at_chance(
    chosen: tuple[list[Candidate], list[Prompt]],
) -> None:
    _, units = chosen
    oracle = scoring.by_category(scoring.answered_by(controls.oracle, units), "official")
    assert {name: c.score for name, c in oracle.items()} == dict.fromkeys(DYNAMIC, 1.0)
    for place in (0, -1):
        rule = controls.chosen(lambda listed, place=place: listed[place])  # type: ignore[misc]
        told = scoring.by_category(scoring.answered_by(rule, units), "official")
        for name, category in told.items():
            if name != "speed_range":  # whose options are shuffled
                assert category.score is not None
                assert category.score <= max(1 / 3, (category.chance or 0.0) + 1e-9), name
    for place in (0, 1, -1):
        told = scoring.by_category(scoring.answered_by(controls.chosen(controls.by_place(place)), units), "official")
        assert told["speed_range"].score == pytest.approx(1 / 3)
    told = scoring.by_category(scoring.answered_by(controls.uniform(random.Random(0)), units), "official")
    for name, category in told.items():
        assert category.score == pytest.approx(category.chance, abs=0.09), name
    steady = scoring.by_category(scoring.answered_by(controls.steady, units), "official")
    assert steady["moves"].score == 0.5  # a pair that agrees with itself: half of all, as half moves
    assert steady["closing"].score == pytest.approx(1 / 3)


def test_frames_of_the_past_are_named_and_the_prompt_says_so(chosen: tuple[list[Candidate], list[Prompt]]) -> None:
    asked = next(p for p in chosen[1] if p.category == "heading_motion" and p.side == 2)
    assert [(f.token, f.seconds) for f in asked.past] == [("frame-3", -1.5), ("frame-2", -1.0), ("frame-1", -0.5)]
    text = whole(asked)
    assert "Of several pictures the last one is of now" in text
    assert "what it looks at lies south; the right of the image is west" in text
    place = next(p for p in chosen[1] if p.category == "where_later")
    assert "the place alone" in whole(place)


def test_the_error_of_a_place_is_kept() -> None:
    asked = prompt("where_later", answer="[10.0, 0.0]", tolerance=1.0)
    units = scoring.score_units([asked], {(asked.unit, 1): Output("<answer>[10, 2.5]</answer>")}, "official")
    assert units[0].readings[0] is not None
    assert units[0].readings[0].error == 2.5
    assert scoring.errors(units) == (2.5, 2.5)
