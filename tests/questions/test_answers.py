"""Answers, read by the rules of SURDS and of Xiaomi: every case of the rules, and what another program says."""

from __future__ import annotations

import json

import pytest

from questions.answers import RULES, Coordinates, Reading, Rules, centerness, extract, read
from questions.units import Prompt
from shards_schema.errors import ConfigError
from tests.questions_toys import BOX, CARS, DATA, RANGES, WORDS, prompt

POINT = prompt("xy2d", answer="[718, 524]")
CHOICE = prompt("dis", CARS, CARS[0])


def point(
    answer: str, rules: Rules = "official", coordinates: Coordinates = "pixels", **given: tuple[int, int]
) -> Reading:
    return read(POINT, f"<think>left of it</think><answer>{answer}</answer>", rules, coordinates, **given)


def choice(text: str, rules: Rules = "official", asked: Prompt = CHOICE) -> Reading:
    return read(asked, text, rules)


# --- points


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("[718.0, 524.5]", 1.0),
        ("[718, 524]", 0.9759),
        ("[[718, 524]]", 0.9759),
        ("[662, 504, 774, 545]", 0.9759),
        ("[0.449, 0.583]", 0.9832),
        ("[700, 520]", 0.5733),
        ("[690, 510]", 0.2390),
        ("[662, 524]", 0.0),
        ("[661, 524]", 0.0),
        ("[449, 583]", 0.0),
        ("[1, 524]", 0.0),
        ("[0.4, 0.5, 0.5, 0.6]", 0.0),
    ],
)
def test_points_that_are_valid(answer: str, score: float) -> None:
    found = point(answer)
    assert found.invalid is None
    assert found.score == pytest.approx(score, abs=5e-5)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("[1600, 524]", "outside"),
        ("[-5, 3]", "outside"),
        ("(718, 524)", "no_point"),
        ("[718 524]", "no_point"),
        ("x=718", "no_point"),
        ("[718,5, 524]", "no_point"),  # a decimal comma makes three numbers
        ("[7.18e2, 524]", "no_point"),
        ("[44.9%, 58.3%]", "no_point"),
        ("[nan, nan]", "no_point"),
        ("[]", "no_point"),
        ("", "empty"),
    ],
)
def test_points_that_are_none(answer: str, why: str) -> None:
    assert point(answer) == Reading(0.0, why)


def test_points_as_another_program_reads_them() -> None:
    golden = json.loads((DATA / "answers.json").read_text())
    assert (tuple(golden["box"]), tuple(golden["options"])) == (BOX, CARS)
    assert sum(row["valid"] for row in golden["points"]) > 40
    for row in golden["points"]:
        found = point(row["text"])
        assert (found.invalid is None, found.score) == (row["valid"], pytest.approx(row["score"])), row["text"]


def test_centerness_of_an_edge_and_of_a_box_without_width() -> None:
    assert centerness((774.0, 545.0), BOX) == 0.0
    assert centerness((5.0, 5.0), (5.0, 0.0, 5.0, 10.0)) == 1.0


@pytest.mark.parametrize(
    ("coordinates", "answer", "score"),
    [
        ("unit", "[0.44875, 0.5827778]", 1.0),
        ("unit", "[0.41375, 0.56, 0.48375, 0.6055556]", 0.9759),  # a box too, which pixels would read as 0,0
        ("unit", "[1.0, 0.5]", None),
        ("thousand", "[449, 583]", 0.9832),
        ("thousand", "[0, 583]", 0.0),
        ("model_input", "[359, 262.25]", 1.0),
    ],
)
@pytest.mark.parametrize("rules", RULES)
def test_coordinates_are_those_that_are_given(
    rules: Rules, coordinates: Coordinates, answer: str, score: float | None
) -> None:
    found = point(answer, rules, coordinates, input_size=(800, 450))
    assert found.invalid == ("outside" if score is None else None)
    assert found.score == pytest.approx(score or 0.0, abs=0.025 if "," in answer[12:] and rules == "xiaomi" else 1e-4)


def test_model_input_wants_a_size() -> None:
    with pytest.raises(ConfigError, match=r"input_size=\[width, height\]"):
        point("[359, 262]", coordinates="model_input")


# --- choices


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<answer>The white car.</answer>", Reading(1.0, said=CARS[0])),
        ("<answer>THE WHITE CAR</answer>", Reading(1.0, said=CARS[0])),
        ("<answer>\nThe white car\n</answer>\n", Reading(1.0, said=CARS[0])),
        ("<answer>white car</answer>", Reading(0.0, "no_option")),
        ("<answer>It is the white car</answer>", Reading(0.0)),
        ("<answer>Almost the same</answer>", Reading(0.0, said=CARS[2])),
        ("<answer>The white car</answer><answer>Almost the same</answer>", Reading(1.0, said=CARS[0])),
        (
            "<think>an <answer>Almost the same</answer>?</think><answer>The white car</answer>",
            Reading(0.0, said=CARS[2]),
        ),
        ("The white car", Reading(0.0, "no_tag")),
        ("", Reading(0.0, "empty")),
        ("<answer></answer>", Reading(0.0, "empty")),
        ("<think>The white car is nea", Reading(0.0, "cut")),
        ("<think>So.</think><answer>The whi", Reading(0.0, "cut")),
        ("<answer>\ud800</answer>", Reading(0.0, "no_option")),
        ("<answer>Das weiße Auto</answer>", Reading(0.0, "no_option")),
    ],
)
def test_choices(text: str, found: Reading) -> None:
    assert choice(text) == found


def test_choices_as_another_program_reads_them() -> None:
    golden = json.loads((DATA / "answers.json").read_text())
    assert sum(row["right"] for row in golden["choices"]) > 2
    for row in golden["choices"]:
        found = choice(f"<answer>{row['text']}</answer>")
        assert (found.invalid is None, found.score) == (row["valid"], float(row["right"])), row["text"]


@pytest.mark.parametrize("said", ["North-east", "north east"])
def test_a_direction_is_one_word(said: str) -> None:
    assert choice(f"<answer>{said}</answer>", asked=prompt("yaw", WORDS, "Northeast")) == Reading(0.0, "no_option")


@pytest.mark.parametrize("said", ["Between 4 and 10 meters", "7 meters"])
def test_a_range_is_said_as_it_stands(said: str) -> None:
    assert choice(f"<answer>{said}</answer>", asked=prompt("depth", RANGES, RANGES[1])) == Reading(0.0, "no_option")


def test_an_option_that_begins_another_one() -> None:
    asked = prompt(
        "dis", ("The white car", "The white car on the left", "Almost the same"), "The white car on the left"
    )
    assert choice("<answer>The white car on the left</answer>", asked=asked).score == 1.0
    assert choice("<answer>The white car</answer>", asked=asked) == Reading(0.0, said="The white car")


def test_a_description_is_no_pattern() -> None:
    options = ("The truck (open", "The c++ van", "Almost the same")
    asked = prompt("dis", options, options[0])
    assert choice("<answer>The truck (open</answer>", asked=asked).score == 1.0
    assert choice("<answer>The c</answer>", asked=asked).invalid == "no_option"


def test_an_option_that_ends_in_a_bracket_cannot_be_given() -> None:
    """The published rule wants a word's end behind the option, and there is none behind a bracket."""
    asked = prompt("dis", ("The truck (open)", "The van", "Almost the same"), "The truck (open)")
    assert choice("<answer>The truck (open)</answer>", asked=asked).invalid == "no_option"
    assert choice("<answer>The truck (open)</answer>", "xiaomi", asked).score == 1.0


# --- Xiaomi's rules


@pytest.mark.parametrize(
    ("text", "official", "xiaomi"),
    [
        ("The white car", None, 1.0),  # without a tag the whole text counts
        ("<answer>white car</answer>", None, 1.0),  # the article is not needed
        ("<answer>the white cars</answer>", None, 0.0),  # no word has to end
        ("It is the white car", None, 0.0),
        ("<answer>no idea</answer>", None, None),
    ],
)
def test_choices_by_both_rules(text: str, official: float | None, xiaomi: float | None) -> None:
    for rules, wanted in zip(RULES, (official, xiaomi), strict=True):
        found = choice(text, rules)
        assert (None if found.invalid else found.score) == wanted


@pytest.mark.parametrize(
    ("answer", "official", "xiaomi"),
    [
        ("[662, 504, 774, 545]", 0.9759, 1.0),  # true division
        ("(662, 504), (774, 545)", None, 1.0),
        ("\uff08662, 504\uff09, \uff08774, 545\uff09", None, 1.0),
        ("662,504,774,545", None, 1.0),
        ("(718, 524)", None, None),
        ("[0.4, 0.5, 0.5, 0.6]", 0.0, 0.0),
    ],
)
def test_points_by_both_rules(answer: str, official: float | None, xiaomi: float | None) -> None:
    for found, wanted in ((point(answer), official), (point(answer, "xiaomi"), xiaomi)):
        assert found.invalid == ("no_point" if wanted is None else None)
        assert found.score == pytest.approx(wanted or 0.0, abs=5e-5)


def test_the_text_that_would_take_the_published_patterns_hours() -> None:
    for text in ("[" + " " * 200_000, "<answer>" * 50_000, "1" * 200_000, "[" + "-" * 100_000 + "5, 3]"):
        for rules in RULES:
            assert read(POINT, f"<answer>{text}</answer>", rules).score == 0.0
            assert extract(text) is None
