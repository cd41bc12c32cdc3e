"""Units from labels: where boxes are seen, what they are called, what is asked about them, and in what balance."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from questions import controls, options, scoring
from questions.making import describing
from questions.making.candidates import Candidate, Refused, fair_ranges, look_at, of_image
from questions.making.choosing import choose, prompts
from questions.making.describing import Look
from questions.making.rules import Rules
from questions.making.seeing import Seen, see
from questions.units import units_of
from shards_schema.lens import Lens

AHEAD = [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
"""A camera that looks along the ego's x."""
CAR = (4.6, 1.9, 1.6)


def turned(degrees: float) -> list[list[float]]:
    """A camera that looks so many degrees to the left of the ego's x."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    found = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(AHEAD)
    return [[float(v) for v in row] for row in found]


def document(
    *boxes: tuple[float, ...],
    names: Sequence[str] = (),
    rotation: Sequence[Sequence[float]] = AHEAD,
    distortion: Sequence[float] = (0, 0, 0, 0, 0),
    **given: Any,
) -> dict[str, Any]:
    """A scene with boxes (x, y, z, length, width, height, heading) before the camera of the worked example."""
    return {
        "token": "0a1b2c3d4e5f6071",
        "log": "a log",
        "timestamp": 1_600_000_000_000_000,
        "cameras": {
            "cam_f0": {
                "size": [1920, 1080],
                "intrinsics": [[1545.0, 0.0, 960.0], [0.0, 1545.0, 560.0], [0.0, 0.0, 1.0]],
                "distortion": list(distortion),
                "sensor2ego_rotation": rotation,
                "sensor2ego_translation": [1.65, 0.0, 1.58],
            }
        },
        "annotations": {
            "boxes": [list(box) for box in boxes],
            "names": list(names or ["vehicle"] * len(boxes)),
            "velocity": [[1.0, 0.0, 0.0]] * len(boxes),
            "track_tokens": [f"track{i}" for i in range(len(boxes))],
        },
        **given,
    }


def found(
    scene: Mapping[str, Any],
    rules: Rules,
    looks: Mapping[str, Look] | None = None,
    refused: Refused | None = None,
) -> list[Candidate]:
    image = look_at(scene, "cam_f0", rules, Counter() if refused is None else refused, looks=looks, hidden={})
    return [] if image is None else list(of_image(image))


A, B = (21.65, 2.0, 0.8, *CAR, 0.0), (13.65, -3.0, 0.9, *CAR, math.pi / 2)


def test_the_worked_example() -> None:
    a, b = see(document(A, B), "cam_f0")
    assert a.p_cam == pytest.approx((-2.0, 0.78, 20.0))
    assert b.p_cam == pytest.approx((3.0, 0.68, 12.0))
    assert (a.distance, b.distance) == (pytest.approx(20.11, abs=0.01), pytest.approx(12.39, abs=0.01))
    assert a.centre == pytest.approx((805.5, 620.3), abs=0.1)
    assert b.centre == pytest.approx((1346.3, 647.6), abs=0.1)
    assert (a.share, b.share, a.hidden, b.hidden) == (1.0, 1.0, 0.0, 0.0)
    looks = {"track0": Look("car", "red"), "track1": Look("car", "blue")}
    by_category = {c.category: c for c in found(document(A, B), Rules(margins=False), looks)}
    for category, right in {"dis": ("b", "a"), "lr": ("a", "b")}.items():
        names = {"a": "The red car", "b": "The blue car"}
        assert by_category[category].answers.right == tuple(names[who] for who in right)
    fb = by_category["fb"]
    assert fb.answers.right == (("Yes", "No") if fb.called[0] == "red car" else ("No", "Yes"))
    yaws = {c.called[0]: c.answers.right for c in found(document(A, B), Rules(), looks) if c.category == "yaw"}
    assert yaws == {"red car": ("North", "South"), "blue car": ("West", "East")}


@pytest.mark.parametrize("camera", [0.0, 55.0, -146.0, 180.0])
def test_words_are_relative_to_the_camera(camera: float) -> None:
    words = {0: "North", 90: "West", 180: "South", -90: "East", -40: "Northeast", 40: "Northwest"}
    middle = (20 * math.cos(math.radians(camera)) + 1.65, 20 * math.sin(math.radians(camera)), 0.8)
    for degrees, word in words.items():
        scene = document((*middle, *CAR, math.radians(degrees + camera)), rotation=turned(camera))
        (yaw,) = [c for c in found(scene, Rules()) if c.category == "yaw"]
        assert yaw.answer == word


def test_a_box_is_cut_at_the_image_and_behind_the_camera() -> None:
    inside, cut, behind = see(document(A, (8.0, 4.5, 0.8, *CAR, 0.0), (2.5, 1.0, 0.8, 6.0, 1.9, 1.6, 0.0)), "cam_f0")
    assert inside.share == 1.0
    assert 0 < cut.share < 1
    assert cut.box2d[0] == 0.0
    assert behind.share == 0.0  # corners behind the camera: how large it were uncut is not known
    assert see(document((-20.0, 0.0, 0.8, *CAR, 0.0)), "cam_f0") == []
    (drawn,) = see(document(A), "cam_f0")
    corners = np.array(
        [[21.65 + i * 2.3, 2.0 + j * 0.95, 0.8 + k * 0.8] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]
    )
    pixels = np.array([[960 - 1545 * y / (x - 1.65), 560 - 1545 * (z - 1.58) / (x - 1.65)] for x, y, z in corners])
    assert drawn.box2d == pytest.approx((*pixels.min(0), *pixels.max(0)))


def test_what_stands_before_a_box_hides_it() -> None:
    near, far = (10.0, 0.0, 0.8, *CAR, 0.0), (30.0, 0.0, 0.8, *CAR, 0.0)
    by_depth = sorted(see(document(far, near), "cam_f0"), key=lambda s: s.depth)
    assert by_depth[0].hidden == 0.0
    assert by_depth[1].hidden == 1.0
    assert see(document(far, near), "cam_f0", {"track0": 0.25})[0].hidden == 0.25


def test_a_lens_is_believed_as_far_as_it_grows() -> None:
    lens = Lens(document(distortion=(-0.3, 0.02, 0.001, -0.001, 0.0))["cameras"]["cam_f0"])
    x = np.linspace(0.0, 3.0, 301)
    pixels, known = lens.project(np.stack((x, 0 * x, 0 * x + 1), axis=-1))
    inside = pixels[known, 0]
    assert (np.diff(inside) > -0.2).all()
    assert not known[-1]
    assert 0.9 < lens.radius2**0.5 < 2.0
    # one that is known exactly: OpenCV's formula at one point
    r2 = 0.3**2 + 0.2**2
    radial = 1 - 0.3 * r2 + 0.02 * r2**2
    u = 0.3 * radial + 2 * 0.001 * 0.06 - 0.001 * (r2 + 2 * 0.09)
    v = 0.2 * radial + 0.001 * (r2 + 2 * 0.04) - 2 * 0.001 * 0.06
    at = lens.project(np.array([0.6, 0.4, 2.0]))[0]
    assert at == pytest.approx((960 + 1545 * u, 560 + 1545 * v))
    far = document((6.0, 9.0, 0.8, *CAR, 0.0), distortion=(-0.3, 0.02, 0, 0, 0))
    assert all(seen.share == 0.0 for seen in see(far, "cam_f0"))


# --- which may be asked about


@pytest.mark.parametrize(
    ("box", "name", "category", "why"),
    [
        (A, "generic_object", "dis", "class"),
        (A, "traffic_cone", "yaw", "class"),
        ((70.0, 2.0, 0.8, *CAR, 0.0), "vehicle", "depth", "depth"),
        ((45.0, 2.0, 0.2, 0.3, 0.3, 0.5, 0.0), "pedestrian", "xy2d", "small"),
        ((8.0, 4.5, 0.8, *CAR, 0.0), "vehicle", "xy2d", "cut"),
        ((21.65, 2.0, 0.8, *CAR, math.radians(20)), "vehicle", "yaw", "margin"),
    ],
)
def test_why_an_object_is_not_asked_about(box: tuple[float, ...], name: str, category: str, why: str) -> None:
    refused: Refused = Counter()
    scene = document(box, A, names=(name, "vehicle"))
    found(scene, Rules(), refused=refused)
    assert refused[category, why] == 1


def test_a_standing_pedestrian_has_no_direction() -> None:
    scene = document((12.0, 1.0, 0.9, 0.7, 0.6, 1.8, 0.0), names=("pedestrian",))
    assert "yaw" in {c.category for c in found(scene, Rules())}
    for velocity in ([0.1, 0.0, 0.0], [None, None, None]):
        scene["annotations"]["velocity"] = [velocity]
        assert "yaw" not in {c.category for c in found(scene, Rules())}


def test_hidden_test_data_is_counted() -> None:
    refused: Refused = Counter()
    assert found({**document(A), "annotations": None}, Rules(), refused=refused) == []
    assert refused == {("", "no_annotations"): 1}


@pytest.mark.parametrize(
    ("margins", "difference", "clear"),
    [(True, 0.7, False), (True, 0.8, None), (True, 1.5, True), (False, 1.0, False), (False, 1.01, True)],
)
def test_differences_near_the_limit_are_skipped(margins: bool, difference: float, clear: bool | None) -> None:
    assert Rules(margins=margins).clear(difference, 1.0, 0.7, 1.5, inclusive=True) is clear


# --- ranges


def test_fair_ranges_give_nothing_away() -> None:
    generator = random.Random(0)
    for _ in range(4000):
        depth, place = generator.uniform(2, 60), generator.randrange(3)
        ranges = fair_ranges(depth, place, generator)
        if ranges is None:
            assert depth < 21  # the lowest range cannot begin below 1 m
            continue
        assert {high - low for low, high in ranges} == {6}
        assert [b[0] - a[1] for a, b in pairwise(ranges)] == [1, 1]
        assert ranges[0][0] >= 1
        assert [low <= depth <= high for low, high in ranges] == [k == place for k in range(3)]


# --- names


def seen_at(x: float, name: str = "vehicle", track: str = "", hidden: float = 0.0) -> Seen:
    return Seen(name, track or f"at{x}", (0.0, 0.0, 9.0), (x - 40, 500, x + 40, 560), (x, 530), 1.0, hidden, 0.0, 0.0)


def named(
    seen: Seen, others: Sequence[Seen], looks: Mapping[str, Look], doubtful: Sequence[Seen] = ()
) -> dict[Any, str]:
    return dict(describing.names(seen, others, looks, (1920, 1080), doubtful))


def test_a_name_fits_one_object_alone() -> None:
    first, second, third = (seen_at(x) for x in (200.0, 600.0, 1000.0))
    looks = {first.track: Look("car", "red"), second.track: Look("car", "red"), third.track: Look("lorry", "red")}
    assert named(third, [first, second], looks)["look"] == "red lorry"
    assert "look" not in named(first, [second, third], looks)
    assert named(first, [second, third], looks)["place"] == "first vehicle from the left"
    assert named(third, [first, second], looks)["place"] == "third vehicle from the left"
    assert named(first, [], {})["look"] == "vehicle"
    assert "place" not in named(first, [], {})  # one alone has no order
    assert named(first, [], {})["region"] == "vehicle in the box [160, 500, 240, 560]"


def test_a_colour_that_is_not_known_may_be_any() -> None:
    first, second = seen_at(200.0), seen_at(600.0)
    assert "look" not in named(first, [second], {first.track: Look("car", "red"), second.track: Look("car")})
    assert (
        named(first, [second], {first.track: Look("car", "red"), second.track: Look("car", "blue")})["look"]
        == "red car"
    )
    assert "look" not in named(first, [second], {first.track: Look("car", "red")})
    walking = seen_at(900.0, "pedestrian")
    assert named(walking, [first], {walking.track: Look(None, "green")})["look"] == "pedestrian in green"


def test_nobody_counts_beyond_what_may_not_be_seen() -> None:
    first, second, third = (seen_at(x) for x in (200.0, 600.0, 1000.0))
    assert named(third, [first, second], {}, [first])["place"] == "first vehicle from the right"
    assert named(second, [first, third], {}, [first])["place"] == "second vehicle from the right"
    assert "place" not in named(second, [first, third], {}, [first, third])
    close = seen_at(205.0)
    assert "place" not in named(first, [close], {})  # which of the two is further left, nobody says


def test_where_a_thing_is_is_not_told_by_its_name() -> None:
    scene = document(A, B, (30.0, 6.0, 0.8, *CAR, 0.0))
    for candidate in found(scene, Rules()):
        assert candidate.category not in ("xy2d", "lr")  # three vehicles of one look: only places would tell them apart
        assert "box" not in candidate.called[0] or candidate.category == "yaw"


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((178, 32, 36), "red"),
        ((28, 62, 128), "blue"),
        ((214, 216, 218), None),  # white in the sun is grey in the shade
        ((42, 44, 48), None),
        ((128, 132, 138), None),
        ((226, 184, 44), "yellow"),
        ((200, 110, 50), None),
    ],
)
def test_a_colour_of_pixels_is_one_or_none(rgb: tuple[int, int, int], name: str | None) -> None:
    image = np.zeros((1080, 1920, 3), dtype=np.uint8)
    image[500:560, 160:240] = rgb
    assert describing.colour_of(image, seen_at(200.0)) == name
    image[:, 200:] = (255, 0, 255)  # half of it is something else
    assert describing.colour_of(image, seen_at(200.0)) is None


# --- the choice


def many(count: int = 60) -> list[Candidate]:
    """Candidates of random scenes, 20 of a log, half a second apart."""
    generator, out = random.Random(1), []
    kinds = [("car", "red"), ("car", "blue"), ("bus", "white"), ("van", "green"), ("lorry", "black"), ("car", "yellow")]
    for n in range(count):
        boxes = [
            (generator.uniform(8, 55), generator.uniform(-9, 9), 0.8, *CAR, generator.uniform(-math.pi, math.pi))
            for _ in kinds
        ]
        scene = document(
            *boxes, token=f"{n:016x}", log=f"log{n // 20}", timestamp=1_600_000_000_000_000 + 500_000 * (n % 20)
        )
        scene["annotations"]["track_tokens"] = [f"log{n // 20}.{i}.{n}" for i in range(len(kinds))]
        looks = dict(zip(scene["annotations"]["track_tokens"], (Look(*kind) for kind in kinds), strict=True))
        out += found(scene, Rules(), looks)
    return out


def test_answers_are_balanced_and_blind_rules_score_chance() -> None:
    rules = Rules(image=100)
    chosen, left = choose(many(), rules)
    answers = Counter((c.category, c.within, c.answer) for c in chosen)
    for category, within in {key[:2] for key in answers}:
        assert len({n for (c, w, _), n in answers.items() if (c, w) == (category, within)}) == 1
    assert {c.category for c in chosen} == {"yaw", "xy2d", "depth", "dis", "lr", "fb"}
    assert sum(left.values()) + len(chosen) == len(many())
    units = [p for c in chosen for p in prompts(c, rules, "shards-spatial", "train")]
    rules_of_text = [controls.widest, *map(controls.by_place, (0, 1, -1)), lambda listed: listed[0]]
    for rule in rules_of_text:
        depth = scoring.by_category(scoring.answered_by(controls.chosen(rule), units), "official")["depth"]
        assert depth.units > 100
        assert depth.score is not None
        assert depth.score <= 0.36 or rule in (controls.widest, rules_of_text[-1])
    blind = scoring.by_category(scoring.answered_by(controls.chosen(controls.widest), units), "official")["depth"]
    assert blind.score == pytest.approx(1 / 3, abs=0.08)
    oracle = scoring.by_category(scoring.answered_by(controls.oracle, units), "official")
    assert [c.score for c in oracle.values()] == pytest.approx([1.0] * 6)


def test_the_official_style_gives_depth_away() -> None:
    scene = [document((d, 0.0, 0.8, *CAR, 0.0), token=f"{d:016.1f}") for d in np.linspace(8, 55, 90).tolist()]
    rules = Rules(style="official")
    chosen = [c for s in scene for c in found(s, rules) if c.category == "depth"]
    units = [p for c in chosen for p in prompts(c, rules, "shards-spatial", "train")]
    blind = scoring.by_category(scoring.answered_by(controls.chosen(controls.widest), units), "official")["depth"]
    assert (blind.units, blind.score) == (90, 1.0)
    assert not any(
        {"annotations", "future"} & c.scene.keys() for c in chosen
    )  # all scenes' candidates are held at once
    assert {p.style for p in units} == {"official"}


def test_one_thing_is_not_asked_about_again_and_again() -> None:
    one = [c for c in many(1) if c.category == "xy2d"]
    again = [
        Candidate(
            **{
                **c.__dict__,
                "scene": {**c.scene, "token": f"{k:016x}", "timestamp": c.scene["timestamp"] + 500_000 * k},
            }
        )
        for c in one
        for k in range(30)
    ]
    for seconds, wanted in ((10.0, {0, 1, 2}), (0.0, {30})):
        chosen, _ = choose([c for c in again if c.answer == "middle"], Rules(seconds=seconds, image=100))
        times: dict[str, list[float]] = {}
        for c in chosen:
            times.setdefault(c.seen[0].track, []).append(c.scene["timestamp"] * 1e-6)
        assert {len(found) for found in times.values()} <= wanted
        for found_times in times.values():
            assert all(b - a >= seconds for a, b in pairwise(sorted(found_times)))


def test_a_unit_is_there_once() -> None:
    chosen, _ = choose(many(20), Rules(seconds=0.0, image=1000))
    made = [p for c in chosen for p in prompts(c, Rules(), "shards-spatial", "train")]
    assert len(units_of(made)) == len(chosen)


def test_an_image_has_so_many_units_and_a_category_too() -> None:
    chosen, _ = choose(many(), Rules(image=2, units=9))
    assert max(Counter(c.scene["token"] for c in chosen).values()) <= 2
    assert max(Counter(c.category for c in chosen).values()) <= 9


def test_units_are_whole_and_say_where_they_are_from() -> None:
    rules = Rules(image=100)
    made = [p for c in choose(many(), rules)[0] for p in prompts(c, rules, "shards-spatial", "evaluation")]
    units = units_of(made)
    assert len(units) == len({*units})
    for sides in units.values():
        assert {(p.benchmark, p.split, p.style, p.size, p.views) for p in sides} == {
            ("shards-spatial", "evaluation", "fair", (1920, 1080), ("cam_f0",))
        }
        assert all(f"the {o.desc}" in p.question for p in sides for o in p.objects)
    assert options.SAME in {p.answer for p in made}
