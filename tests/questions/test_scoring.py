"""Scores of units: pairs, denominators, chance, what has no answer, and answerers that see nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from questions import controls, options, scoring
from questions.answers import RULES, Rules, centerness
from questions.outputs import Output, read_outputs
from questions.units import Prompt, Target, units_of
from shards_schema.errors import ConfigError, DatasetError
from tests.questions_toys import CARS, RANGES, WORDS, official_units, prompt


def scored(prompts: Sequence[Prompt], said: Sequence[str | None], rules: Rules = "official") -> list[scoring.UnitScore]:
    outputs = {
        (p.unit, p.side): Output(f"<answer>{text}</answer>")
        for p, text in zip(prompts, said, strict=True)
        if text is not None
    }
    return scoring.score_units(prompts, outputs, rules)


def pair(category: str, options: tuple[str, ...], right: tuple[str, str]) -> list[Prompt]:
    return [prompt(category, options, answer, side=side) for side, answer in enumerate(right, 1)]


SIX = [
    *pair("yaw", WORDS, ("Northeast", "Southwest")),
    prompt("xy2d", answer="[718, 524]"),
    prompt("depth", RANGES, RANGES[1]),
    *pair("dis", CARS, (CARS[0], CARS[1])),
    *pair("lr", CARS, (CARS[0], CARS[1])),
    *pair("fb", (options.YES, options.NO, options.SAME_ROW), ("Yes", "No")),
]


def test_the_worked_total() -> None:
    said = ["Northeast", "Northeast", "[700, 520]", RANGES[1], CARS[0], "nothing", CARS[0], CARS[1], "Yes", "Yes"]
    categories = scoring.by_category(scored(SIX, said), "official")
    scores = [c.score for c in categories.values()]
    assert list(categories) == ["yaw", "xy2d", "depth", "dis", "lr", "fb"]
    assert scores == [0.0, pytest.approx(0.5733, abs=5e-5), 1.0, 0.0, 1.0, 0.0]
    assert scoring.overall(categories)[0] == pytest.approx(0.4289, abs=5e-5)
    assert [c.valid for c in categories.values()] == [1, 1, 1, 0, 1, 1]
    assert categories["dis"].score_of_valid is None  # a mean over nothing


def test_chance_of_a_unit() -> None:
    found = {u.category: u.chance for u in scored(SIX, [None] * len(SIX))}
    assert found["yaw"] == 1 / 16
    assert found["depth"] == pytest.approx(1 / 3)
    assert found["dis"] == found["lr"] == found["fb"] == pytest.approx(1 / 9)
    assert found["xy2d"] == pytest.approx(0.3258 * 112 * 41 / (1600 * 900), rel=1e-3)


def test_a_uniform_point_in_the_right_box() -> None:
    generator = random.Random(0)
    box = prompt("xy2d", answer="").objects[0].box2d
    found = mean(
        centerness((generator.uniform(box[0], box[2]), generator.uniform(box[1], box[3])), box) for _ in range(40_000)
    )
    assert found == pytest.approx(controls.POINT_IN_BOX, abs=0.005)


def test_missing_outputs_count_for_one_and_not_for_the_other() -> None:
    prompts = [
        *pair("dis", CARS, CARS[:2]),
        *(p.model_copy(update={"unit": "dis-1"}) for p in pair("dis", CARS, CARS[:2])),
    ]
    said = [CARS[0], CARS[1], CARS[0], None]
    official = scoring.by_category(scored(prompts, said), "official")["dis"]
    xiaomi = scoring.by_category(scored(prompts, said, "xiaomi"), "xiaomi")["dis"]
    assert (official.units, official.score) == (2, 0.5)
    assert (xiaomi.units, xiaomi.score) == (1, 1.0)
    units = scored(prompts, said)
    found = scoring.accounts(units, {})
    assert (found.planned, found.scored) == (4, 3)


def test_nothing_answered_is_no_score_by_xiaomis_rules() -> None:
    category = scoring.by_category(scored(SIX, [None] * len(SIX), "xiaomi"), "xiaomi")["yaw"]
    assert (category.units, category.score, category.chance, category.corrected) == (0, None, None, None)
    assert scoring.overall({"yaw": category}) == (None, None)


def test_a_size_that_nothing_would_be_read_by_is_refused() -> None:
    with pytest.raises(ConfigError, match="coordinates=pixels needs no input_size"):
        scoring.score_units(SIX, {}, "official", "pixels", (644, 364))


def test_accounts_close_and_say_why() -> None:
    outputs = {
        ("yaw-0", 1): Output("<answer>Northeast</answer> or <answer>North</answer>"),
        ("yaw-0", 2): Output("<think>hm"),
        ("depth-0", 1): Output(None, "out_of_memory"),
    }
    prompts = [p for p in SIX if p.category in ("yaw", "depth", "xy2d")]
    found = scoring.accounts(scoring.score_units(prompts, outputs, "official"), outputs)
    assert (found.planned, found.scored, found.several) == (4, 2, 1)
    assert found.unanswered == {"out_of_memory": 1, "no_output": 1}
    assert found.invalid == {"cut": 1}
    assert found.planned == found.scored + sum(found.unanswered.values())


def test_the_interval_of_the_whole_has_the_middle_of_the_whole() -> None:
    said = ["Northeast", "Southwest", "[700, 520]", RANGES[0], CARS[0], "nothing", CARS[0], CARS[1], "Yes", "Yes"]
    more = [p.model_copy(update={"unit": "depth-1"}) for p in SIX if p.category == "depth"]
    categories = scoring.by_category(scored([*SIX, *more], [*said, RANGES[1]]), "official")
    values, groups = scoring.influence(categories)
    assert mean(values) == pytest.approx(scoring.overall(categories)[0])
    assert len(groups) == 7


# --- answerers that look at nothing, at the size of the real set


def many(count: int = 925) -> list[Prompt]:
    """Units of all six kinds with truths of every class, on boxes of the size that SURDS' have in the mean."""
    generator, out = random.Random(3), []
    for n in range(count):
        given: dict[str, Any] = {"token": f"image{n}"}
        word = generator.choice(options.COMPASS)
        out += _both("yaw", options.facings(word, generator), n, given)
        x, y = generator.randrange(0, 1300), generator.randrange(300, 680)
        box = Target(desc="car", box2d=(x, y, x + 300, y + 220), p_cam=(0, 0, 9))
        out.append(prompt("xy2d", answer="", unit=f"xy2d-{n}", **{**given, "objects": (box,)}))
        depth = generator.uniform(2.6, 60)
        texts = [options.range_text(ends) for ends in options.depth_ranges(depth, generator)]
        drawn = tuple(generator.sample(texts, 3))
        out.append(prompt("depth", drawn, texts[0], unit=f"depth-{n}", value=depth, **given))
        a, b = (generator.uniform(2, 40) for _ in range(2))
        out += _both("dis", options.distances("car", "bus", a, b), n, given)
        out += _both("lr", options.columns("car", "bus", a * 40, b * 40), n, given)
        out += _both("fb", options.rows(a, b), n, given)
    return out


def _both(category: str, answers: options.Answers, n: int, given: dict[str, Any]) -> list[Prompt]:
    return [
        prompt(category, answers.options, right, side=side, unit=f"{category}-{n}", **given)
        for side, right in enumerate(answers.right, 1)
    ]


MANY = many()


def categories_of(answerer: controls.Answerer) -> dict[str, scoring.CategoryScore]:
    return scoring.by_category(scoring.answered_by(answerer, MANY), "official")


def test_the_oracle_is_always_right() -> None:
    found = categories_of(controls.oracle)
    assert {c.score for c in found.values()} == {1.0}
    assert {c.units for c in found.values()} == {925}


def test_a_random_answerer_scores_chance() -> None:
    found = categories_of(controls.uniform(random.Random(0)))
    score, chance = scoring.overall(found)
    assert score == pytest.approx(0.12, abs=0.02)
    assert chance == pytest.approx(score, abs=0.02)
    for name, wanted in (
        ("yaw", 1 / 16),
        ("depth", 1 / 3),
        ("dis", 1 / 9),
        ("lr", 1 / 9),
        ("fb", 1 / 9),
        ("xy2d", 0.015),
    ):
        assert found[name].score == pytest.approx(wanted, abs=0.04)


@pytest.mark.parametrize("word", ["Yes", "No"])
def test_one_word_for_all_scores_nothing_in_pairs(word: str) -> None:
    found = categories_of(controls.chosen(lambda listed: word if word in listed else listed[0]))
    assert found["fb"].score == found["yaw"].score == found["dis"].score == found["lr"].score == 0.0


def test_the_same_everywhere_scores_the_ties() -> None:
    found = categories_of(controls.chosen(lambda listed: listed[-1]))
    units = scoring.answered_by(controls.oracle, MANY)
    ties = scoring.ties(units)
    assert set(ties) == {"dis", "lr", "fb"}
    for name, share in ties.items():
        assert found[name].score == pytest.approx(share)
        assert 0 < share < 0.2


def test_the_widest_option_is_right_by_the_official_rules() -> None:
    assert categories_of(controls.chosen(controls.widest))["depth"].score == pytest.approx(1.0, abs=0.002)


def test_sides_bands_and_leanings() -> None:
    said_front = scoring.answered_by(controls.chosen(lambda listed: "Yes" if "Yes" in listed else listed[0]), MANY)
    front, behind = scoring.by_side(said_front)["fb"]
    assert front + behind + scoring.ties(said_front)["fb"] == pytest.approx(1.0)
    low = scoring.answered_by(controls.chosen(controls.by_place(0)), MANY)
    bands = scoring.by_distance(low, "official")
    assert list(bands) == ["0-10 m", "10-20 m", "20-30 m", "over 30 m"]
    assert sum(band.units for band in bands.values()) == 925
    assert bands["20-30 m"].score == bands["over 30 m"].score == 0.0
    near, far = scoring.leaning(low) or (0.0, 0.0)
    assert far == 0.0
    assert near == pytest.approx(1 - mean(u.score for u in low if u.category == "depth"))
    assert scoring.leaning([u for u in low if u.category == "fb"]) is None


# --- outputs of others


def official_output(folder: Path, prompts: Sequence[Prompt], category: str) -> None:
    rows = [
        {
            "vqa_idx": p.index,
            "image": Path(p.images[0]).name,
            "prompt": "Options:" + "".join(f"\n- {option}" for option in p.options),
            "output": controls.oracle(p),
        }
        for p in prompts
        if p.category == category
    ]
    (folder / f"00_{category}_vqas_output.json").write_text(json.dumps(rows))


def test_outputs_in_every_form(tmp_path: Path) -> None:
    prompts = official_units()
    official_output(tmp_path, prompts, "yaw")
    official_output(tmp_path, prompts, "fb")
    depth = [p for p in prompts if p.category == "depth"]
    swift = [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "Options:\n- " + "\n- ".join(p.options)},
            ],
            "response": controls.oracle(p),
            "labels": f"<answer>{p.answer}</answer>",
        }
        for p in depth
    ]
    (tmp_path / "02_depth_vqas_val_result.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swift))
    ours = [
        {"unit": p.unit, "side": p.side, "output": controls.oracle(p)} for p in prompts if p.category in ("lr", "xy2d")
    ]
    (tmp_path / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ours))
    factory = [
        {"unit": p.unit, "side": p.side, "predict": controls.oracle(p), "label": p.answer}
        for p in prompts
        if p.category == "dis"
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in factory))
    outputs = read_outputs(tmp_path, prompts)
    assert len(outputs) == len(prompts)
    for rules in RULES:
        units = scoring.score_units(prompts, outputs, rules)
        wrong = [u for u in units if u.score < 0.95]
        # the published rule knows no option that ends in a bracket
        assert all("pick-up truck (open)" in [o.desc for o in u.prompts[0].objects] for u in wrong)
        assert bool(wrong) == (rules == "official")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"unit": "x", "side": 1, "output": ""}, "answers unit 'x', side 1, which is not among the units"),
        ({"unit": ["x"], "side": {}, "output": ""}, "answers unit .'x'., side {}, which is not among the units"),
        ({"vqa_idx": 3, "output": ""}, "says not what it answers"),
        ({"unit": "depth-0", "answer": "4"}, "expected a text under output, response, predict"),
        ({"unit": "depth-0", "output": "", "labels": RANGES[0]}, "its label is"),
        ({"unit": "depth-0", "output": "", "prompt": "Options:\n- 4\n- 5\n\n"}, "other draws"),
        ({"unit": "depth-0", "output": "", "input_size": [3]}, "expected .width, height."),
        ({"unit": "depth-0", "output": "", "input_size": [0, 9]}, "expected .width, height."),
        ({"unit": "depth-0", "output": 5}, "found {'output': 'int'}"),
        ({"unit": "depth-0", "output": "4", "response": "5"}, "expected a text under output, response"),
        ({"unit": "fb-0", "output": "Yes"}, "says not which prompt of unit 'fb-0' it answers: give side 1 or 2"),
        ({"custom_id": "request-1", "response": {}}, "answers unit '', side 'request-1', which is not among the units"),
    ],
)
def test_outputs_of_something_else_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = tmp_path / "outputs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DatasetError, match=said):
        read_outputs(path, SIX)


def by_others(given: Prompt) -> dict[str, Any]:
    """The same answer, as one of several programs writes it."""
    said, whose = controls.oracle(given), {"unit": given.unit, "side": str(given.side)}
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
    return {
        "yaw": {
            "custom_id": f"{given.unit}/{given.side}",
            "response": {"status_code": 200, "body": body},
            "error": None,
        },
        "xy2d": {**whose, "completion": [{"role": "assistant", "content": said}]},
        "depth": {**whose, "output": [{"type": "text", "text": said}]},
    }.get(given.category, {**whose, "generated_text": [said]})


def test_outputs_as_servers_and_other_trainers_write_them(tmp_path: Path) -> None:
    rows = [by_others(given) for given in SIX]
    rows[0] |= {"response": None, "error": {"code": "timeout \ud800"}}
    lines = "".join(json.dumps(row) + "\r\n\r\n" for row in rows)
    (tmp_path / "outputs.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    (tmp_path / "._outputs.jsonl").write_bytes(b"\0\5")  # as a Mac leaves it
    (tmp_path / "old.json").mkdir()
    found = read_outputs(tmp_path, SIX)
    assert found[SIX[0].unit, 1] == Output(None, r"{'code': 'timeout \ud800'}")
    assert [found[p.unit, p.side].text for p in SIX[1:]] == [controls.oracle(p) for p in SIX[1:]]


def test_rows_that_kept_no_unit_are_joined_by_their_place_where_each_holds_its_question(tmp_path: Path) -> None:
    asked = [p.model_copy(update={"question": f"Which of {n}?"}) for n, p in enumerate(SIX)]
    left = asked[0].model_copy(update={"unit": "yaw-1", "left_out": "ambiguous", "question": "Which?"})
    rows = [{"prompt": f"<|user|>{p.question}<|end|>", "predict": controls.oracle(p), "label": p.answer} for p in asked]
    path = tmp_path / "generated_predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_outputs(path, [left, *asked])
    assert {key: output.text for key, output in found.items()} == {(p.unit, p.side): controls.oracle(p) for p in asked}
    for wrong in (rows[1:], [rows[1], rows[0], *rows[2:]]):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DatasetError, match="entry 0: says not what it answers"):
            read_outputs(path, [left, *asked])


def test_a_line_that_is_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    path.write_text('{"unit": "depth-0", "output": ""}\n{"unit": "fb-0", "outp')
    with pytest.raises(DatasetError, match=r"outputs.jsonl: line 2 is not JSON: .* column .*not cut"):
        read_outputs(path, SIX)


def test_an_index_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "00_yaw_vqas_output.json").write_text('\ufeff[{"vqa_idx": [0], "output": ""}]', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"entry 0: answers yaw question \[0\], which is not among the units"):
        read_outputs(tmp_path, official_units())


def test_a_second_answer_is_refused(tmp_path: Path) -> None:
    row = json.dumps({"unit": "depth-0", "side": 1, "output": ""})
    (tmp_path / "outputs.jsonl").write_text(f"{row}\n{row}\n")
    with pytest.raises(DatasetError, match="entry 2: answers unit 'depth-0', side 1 a second time"):
        read_outputs(tmp_path / "outputs.jsonl", SIX)


def test_half_a_pair_is_no_unit() -> None:
    with pytest.raises(DatasetError, match="unit yaw-0 has the prompts yaw 1; a unit of yaw has 2"):
        units_of(SIX[:1])
