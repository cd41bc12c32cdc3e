"""Rewards for questions: the form, the metric's own accuracy, pairs, and boxes that have to fit."""

from __future__ import annotations

import math
import random

import pytest

from questions import rewards
from questions.answers import Box
from questions.controls import said
from questions.units import Prompt, Target
from shards_schema.errors import ConfigError
from tests.questions_toys import BOX, CARS, prompt

WHOLE = (0.0, 0.0, 1600.0, 900.0)
CAR, ADULT = (
    Target(desc=d, box2d=b, p_cam=(0, 0, 9)) for d, b in (("white car", BOX), ("adult", (100, 100, 200, 300)))
)


def pair(answers: tuple[str, str] = ("Yes", "No"), unit: str = "fb-0") -> list[Prompt]:
    return [prompt("fb", ("Yes", "No"), answer, unit=unit, side=side) for side, answer in enumerate(answers, 1)]


@pytest.mark.parametrize(
    ("text", "plain", "located"),
    [
        ("<think>it is near</think><answer>Yes</answer>", 1, 0),
        (" <think></think>\n\n<answer>Yes</answer>\n", 1, 0),
        ("<location>car: [1, 2, 3, 4]</location> <think>a\nb</think> <answer>Yes</answer>", 0, 1),
        ("<answer>Yes</answer>", 0, 0),
        ("<think>a</think><answer>Yes</answer> and more", 0, 0),
        ("<think>a</think><answer>Yes</answer><answer>No</answer>", 0, 0),
        ("<think><answer>Yes</answer></think><answer>No</answer>", 0, 0),
        ("<think>a<think>b</think><answer>Yes</answer>", 0, 0),
        ("<answer>Yes</answer><think>a</think>", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_form_is_all_of_the_text(text: str, plain: float, located: float) -> None:
    assert (rewards.form(text), rewards.form(text, located=True)) == (plain, located)


def test_accuracy_is_what_the_metric_gives() -> None:
    which = prompt("dis", CARS, "The white car")
    assert rewards.accuracy(which, "<think>?</think><answer>the white car.</answer>") == 1
    assert rewards.accuracy(which, "<answer>white car</answer>") == 0  # the option stands with its article
    where = prompt("xy2d", answer="[718, 524]")
    found = [rewards.accuracy(where, said(text)) for text in ("[718, 524.5]", "[700, 520]", "[690, 510]", "[1, 524]")]
    assert found == pytest.approx([1.0, 0.5733, 0.2390, 0.0], abs=1e-4)  # the nearer to the middle, the more
    assert rewards.accuracy(where, said("[448.75, 582.7777777]"), "thousand") == pytest.approx(1.0)


def test_always_yes_earns_half_of_the_prompts_and_none_of_the_pairs() -> None:
    rng = random.Random(0)
    prompts = [p for i in range(50) for p in pair(("Yes", "No") if rng.random() < 0.5 else ("No", "Yes"), f"fb-{i}")]
    texts = [said("Yes")] * len(prompts)
    assert sum(rewards.accuracy(p, t) for p, t in zip(prompts, texts, strict=True)) == 50
    assert sum(rewards.paired(prompts, texts)) == 0
    assert rewards.paired(prompts, [said(p.answer) for p in prompts]) == [1.0] * 100


def test_samples_of_a_pair_go_together_in_their_order() -> None:
    first, second = pair()
    prompts = [first, first, first, second, second, second]  # as GRPO has them: a group of samples a prompt
    texts = [said(t) for t in ("Yes", "Yes", "No", "No", "Yes", "No")]
    assert rewards.paired(prompts, texts) == [1, 0, 0, 1, 0, 0]
    alone = prompt("depth", ("A", "B"), "A", unit="depth-0")
    assert rewards.paired([first, alone, second], [said("Yes"), said("A"), said("No")]) == [1, 1, 1]


def test_half_a_pair_is_an_error_and_no_zero() -> None:
    first, second = pair()
    with pytest.raises(ConfigError, match="unit fb-0 has side 1 2 times, side 2 1 times in this call"):
        rewards.paired([first, first, second], [said("Yes")] * 3)
    with pytest.raises(ConfigError, match="has side 2 1 times in this call"):
        rewards.paired([second], [said("No")])


def published(said_box: Box, true: Box) -> float:
    """The rule of SURDS' training: how centred the middles are, measured in the size of the box that was SAID."""
    (x1, y1, x2, y2), (a1, b1, a2, b2) = said_box, true
    dx, dy = abs((x1 + x2) - (a1 + a2)) / 2, abs((y1 + y2) - (b1 + b2)) / 2
    c = math.sqrt(max(0.0, 1 - dx / ((x2 - x1) / 2)) * max(0.0, 1 - dy / ((y2 - y1) / 2)))
    return float(2 * c - 1 > 0.5)


@pytest.mark.parametrize(
    ("box", "by_them", "by_us"),
    [
        (BOX, 1, 1),
        ((660.0, 500.0, 780.0, 550.0), 1, 1),
        (WHOLE, 1, 0),  # 0.0032 of the picture is the car: no sight was needed
        ((690.0, 504.0, 802.0, 545.0), 0, 1),
        ((650.0, 500.0, 760.0, 540.0), 1, 1),
        ((800.0, 504.0, 912.0, 545.0), 0, 0),
    ],
)
def test_a_box_over_the_whole_image_satisfies_the_published_rule_and_not_ours(
    box: Box, by_them: float, by_us: float
) -> None:
    assert published(box, BOX) == by_them
    car = prompt("xy2d", answer="[718, 524]", objects=(CAR,))
    assert rewards.location(car, f"<location>white car: {[*box]}</location>") == by_us


def test_objects_are_found_by_name() -> None:
    both = prompt("dis", CARS, "The white car", objects=(CAR, ADULT))
    car, adult = "[662, 504, 774, 545]", "[100, 100, 200, 300]"

    def score(inside: str, **given: str) -> float:
        return rewards.location(both, f"<location>{inside}</location><answer>x</answer>", **given)  # type: ignore[arg-type]

    assert score(f"the White car: {car}, adult: {adult}") == 1
    assert score(f"adult: {adult}; white car: {car}") == 1
    assert score(f"white car: {adult}, adult: {car}") == 0
    assert score(f"white car: {WHOLE}, white car: {car}, adult: {adult}") == 0.5  # of a name the first counts
    assert score(f"{car}, {adult}") == 0
    assert score("white car: [662, 504, 774], adult: x") == 0
    assert rewards.location(both, f"white car: {car}") == 0
    unit = [662 / 1600, 504 / 900, 774 / 1600, 545 / 900]
    assert score(f"white car: {unit}", coordinates="unit") == 0.5
    with pytest.raises(ConfigError, match="pixels, unit or thousand"):
        score(f"white car: {car}", coordinates="model_input")


def test_overlap() -> None:
    assert rewards.overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert rewards.overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert rewards.overlap((2, 2, 0, 0), (0, 0, 2, 2)) == 0
