"""What is said of scored questions: tables by category, camera and distance, and what a number has to be read with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from questions import controls, scoring
from questions.answers import Rules, extract
from questions.making.candidates import Candidate
from questions.outputs import NO_OUTPUT, Key, Output
from questions.scoring import Accounts, CategoryScore, UnitScore
from questions.units import KINDS, Prompt, units_of
from reports import pages
from reports.inspection.colours import jpeg_uri
from reports.intervals import clustered
from reports.tables import table

HEAD = ("category", "units", "valid", "score", "of valid", "chance", "corrected", "95 %")
GIVEN_AWAY = 0.9
"""From here on a rule that reads the options alone makes a score worthless."""


def scores(units: Sequence[UnitScore], rules: Rules, blind: Sequence[UnitScore] = ()) -> str:
    """All tables of a score; `blind`: the same units, answered without the picture."""
    categories, unseen = scoring.by_category(units, rules), scoring.by_category(blind, rules)
    score, chance = scoring.overall(categories)
    head = [*HEAD, "blind"] if blind else HEAD
    rows = [
        [*_row(name, category), *([_number(unseen[name].score if name in unseen else None)] if blind else [])]
        for name, category in categories.items()
    ]
    closing = [_number(x) for x in (score, None, chance, scoring.corrected(score, chance))]
    whole = ["overall (mean of categories)", str(sum(c.units for c in categories.values())), "", *closing]
    whole += [_interval(*scoring.influence(categories)), *([_number(scoring.overall(unseen)[0])] if blind else [])]
    for part, its in scoring.by_part(categories).items():
        score, chance = scoring.overall(its)
        cells = [_number(x) for x in (score, None, chance, scoring.corrected(score, chance))]
        rows.append([f"{part} (mean of {len(its)})", str(sum(c.units for c in its.values())), "", *cells])
        rows[-1] += [_interval(*scoring.influence(its))]
        rows[-1] += [_number(scoring.overall({n: c for n, c in unseen.items() if n in its})[0])] if blind else []
    parts = [table(head, [*rows, whole]), *_depth(units, rules), *_motion(units, rules), *_notes(units)]
    parts.append(_cameras(units, rules))
    return "\n\n".join(part for part in parts if part)


def ways(found: Mapping[str, Sequence[UnitScore]], rules: Rules) -> str:
    """The same units, answered in several ways: each category's score in each, with its interval, beside chance."""
    categories = {way: scoring.by_category(units, rules) for way, units in found.items()}
    first = next(iter(categories.values()))

    def cell(value: float | None, values: Sequence[float], groups: Sequence[str]) -> str:
        return "" if value is None else f"{value:.3f} ({_interval(values, groups)})"

    rows = [
        [
            name,
            str(c.units),
            _number(c.chance),
            *(cell(w[name].score, w[name].values, w[name].groups) for w in categories.values()),
        ]
        for name, c in first.items()
    ]
    whole = ["overall", str(sum(c.units for c in first.values())), _number(scoring.overall(first)[1])]
    whole += [cell(scoring.overall(w)[0], *scoring.influence(w)) for w in categories.values()]
    valid = [sum(c.valid for c in w.values()) / max(sum(c.units for c in w.values()), 1) for w in categories.values()]
    shares = ["valid", "", "", *(f"{share:.3f}" for share in valid)]
    return table(("score (95 %)", "units", "chance", *found), [*rows, whole, shares])


def _row(name: str, category: CategoryScore) -> list[str]:
    shares = (
        category.valid / category.units if category.units else None,
        category.score,
        category.score_of_valid,
        category.chance,
        category.corrected,
    )
    return [name, str(category.units), *map(_number, shares), _interval(category.values, category.groups)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _interval(values: Sequence[float], groups: Sequence[str]) -> str:
    """By whole logs, or images where no log is known: what lies in one is not independent."""
    found = clustered(values, groups)
    if found is None or not math.isfinite(found.half):
        return "none"
    return f"{max(found.middle - found.half, 0.0):.3f} .. {min(found.middle + found.half, 1.0):.3f}"


def _depth(units: Sequence[UnitScore], rules: Rules) -> list[str]:
    depth = [unit for unit in units if unit.category == "depth"]
    if not depth:
        return []
    prompts = [p for unit in depth for p in unit.prompts]
    blind = scoring.summed(scoring.answered_by(controls.chosen(controls.widest), prompts), "official").score
    warned = blind is not None and blind >= GIVEN_AWAY
    out = [
        f"depth, the widest option always: {_number(blind)}"
        + (": the options alone give the answer away, so a score near to it shows no sight" if warned else "")
    ]
    bands = scoring.by_distance(depth, rules)
    if bands:
        rows = [[name, str(band.units), _number(band.score)] for name, band in bands.items()]
        out.append(table(("depth, true distance", "units", "score"), rows))
    leaning = scoring.leaning(depth)
    if leaning:
        out.append(f"depth, of valid answers: too near {leaning[0]:.3f}, too far {leaning[1]:.3f}")
    return out


def _motion(units: Sequence[UnitScore], rules: Rules) -> list[str]:
    bands = scoring.by_distance(units, rules, "speed_range")
    rows = [[name, str(band.units), _number(band.score)] for name, band in bands.items()]
    out = [table(("speed_range, true speed", "units", "score"), rows)] if rows else []
    errors = scoring.errors(units)
    if errors:
        told = "off by {:.2f} m in the mean, {:.2f} m in the median".format(*errors)
        out.append(f"where_later, of valid answers: {told}")
    return out


def _notes(units: Sequence[UnitScore]) -> list[str]:
    sides = {
        name: ", ".join(f"{word} {share:.3f}" for word, share in zip(KINDS[name].sides_ask, shares, strict=True))
        for name, shares in scoring.by_side(units).items()
    }
    out = ["each prompt alone: " + "; ".join(f"{name}: {text}" for name, text in sides.items())] if sides else []
    ties = ", ".join(f"{name} {share:.3f}" for name, share in scoring.ties(units).items())
    return [*out, f'"almost the same" everywhere scores: {ties}'] if ties else out


def _cameras(units: Sequence[UnitScore], rules: Rules) -> str:
    cameras = scoring.by_camera(units, rules)
    names = [name for name in KINDS if any(name in found for found in cameras.values())]

    def cell(category: CategoryScore | None) -> str:
        return "" if category is None or category.score is None else f"{category.score:.3f} ({category.units})"

    rows = [[camera, *(cell(found.get(name)) for name in names)] for camera, found in cameras.items()]
    return table(("camera: score (units)", *names), rows)


def accounted(accounts: Accounts, left_out: int) -> str:
    """planned = scored + unanswered; why outputs are no answers; units that were not asked."""
    missing = sum(accounts.unanswered.values())
    out = [
        f"\nprompts: planned {accounts.planned} = scored {accounts.scored} + unanswered {missing}"
        + _reasons(accounts.unanswered),
        f"scored as no answer: {sum(accounts.invalid.values())}{_reasons(accounts.invalid)}",
    ]
    if accounts.several:
        out.append(f"outputs with more than one answer, of which the first counts: {accounts.several}")
    if left_out:
        out.append(f"units left out, since their descriptions are ambiguous: {left_out} (ambiguous=keep has them)")
    return "\n".join(out)


def _reasons(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{reason} {n}' for reason, n in sorted(counts.items()))})" if counts else ""


def made(prompts: Iterable[Prompt]) -> str:
    """Of new units: made = asked + left out, by category."""
    units = units_of(prompts)
    every = Counter(sides[0].category for sides in units.values())
    out = Counter(sides[0].category for sides in units.values() if sides[0].left_out is not None)
    names = [name for name in KINDS if name in every]
    rows = [[name, str(every[name]), str(every[name] - out[name]), str(out[name])] for name in names]
    return table(("category", "units", "asked", "left out (ambiguous)"), rows)


def document(units: Sequence[UnitScore], rules: Rules) -> dict[str, Any]:
    """For a file: scores, and every unit's."""
    categories = scoring.by_category(units, rules)
    return {
        "rules": rules,
        "overall": scoring.overall(categories)[0],
        "categories": {
            name: {"units": c.units, "valid": c.valid, "score": c.score, "chance": c.chance}
            for name, c in categories.items()
        },
        "units": [
            {
                "unit": unit.prompts[0].unit,
                "score": unit.score,
                "prompts": [None if r is None else {"score": r.score, "invalid": r.invalid} for r in unit.readings],
            }
            for unit in units
        ],
    }


BLIND: Mapping[str, controls.Answerer] = {
    "oracle": controls.oracle,
    "first": controls.chosen(lambda options: options[0]),
    "steady": controls.steady,
    "last": controls.chosen(lambda options: options[-1]),
    "widest": controls.chosen(controls.widest),
    "lowest": controls.chosen(controls.by_place(0)),
    "middle": controls.chosen(controls.by_place(1)),
    "highest": controls.chosen(controls.by_place(-1)),
}
"""Who knows the truth, and rules that read the options alone."""


def blind(prompts: Sequence[Prompt]) -> str:
    """Of new units: how many, and what answerers that see no picture score on them, by category."""
    found = {name: scoring.by_category(scoring.answered_by(rule, prompts), "official") for name, rule in BLIND.items()}
    rows = [
        [name, str(category.units), _number(category.chance), *(_number(found[rule][name].score) for rule in BLIND)]
        for name, category in found["oracle"].items()
    ]
    return table(("category", "units", "chance", *BLIND), rows)


def still_and_closer(chosen: Sequence[Candidate]) -> str:
    """How many units about motion are of things that stand and come closer, since the car moves; "" of none."""
    shares = {
        name: [c.wanted for c in chosen if c.category == name]
        for name in KINDS
        if any(c.category == name for c in chosen)
    }
    told = ", ".join(f"{name} {sum(w)} of {len(w)}" for name, w in shares.items() if any(w))
    return f"still, and closer since the car moves: {told}\n" if told else ""


def refused(counts: Mapping[tuple[str, str], int]) -> str:
    """What was not asked, and why, by category."""
    names = [name for name in ("", *KINDS) if any(category == name for category, _ in counts)]
    lines = [
        f"  {name or 'images'}: " + ", ".join(f"{why} {n}" for (c, why), n in sorted(counts.items()) if c == name)
        for name in names
    ]
    return "\n".join(["not asked:", *lines]) if lines else ""


_COLOURS = ("#e5484d", "#3e63dd")
_WIDTH = 960
"""Pixels that a drawn picture has at most."""


def examples(
    prompts: Sequence[Prompt],
    a_kind: int,
    image: Callable[[Prompt], bytes],
    notices: Sequence[str] = (),
    said: Mapping[str, Mapping[Key, Output]] | None = None,
) -> str:
    """A page with a few units of each kind, spread evenly over its answers: picture, boxes, question, options, answer.

    Args:
        prompts: of whole units.
        a_kind: units of each kind.
        image: the JPEG that a prompt is about.
        notices: that stand above.
        said: way of asking -> what was answered, which is drawn too.
    """
    units: dict[str, list[tuple[Prompt, ...]]] = {}
    for sides in units_of(prompts).values():
        units.setdefault(sides[0].category, []).append(sides)
    for listed in units.values():  # so that each answer is drawn, also where one comes seldom
        listed.sort(key=lambda sides: sides[0].answer)
    return pages.render(
        "questions.html",
        title=f"{', '.join(sorted({f'{p.benchmark} {p.split}' for p in prompts}))}: questions",
        notices=notices,
        kinds={
            f"{name} ({len(units[name])} units)": [
                _drawn(sides, image, said or {})
                for i in range(min(a_kind, len(units[name])))
                for sides in [units[name][i * len(units[name]) // min(a_kind, len(units[name]))]]
            ]
            for name in KINDS
            if name in units
        },
    )


def _drawn(
    sides: tuple[Prompt, ...], image: Callable[[Prompt], bytes], said: Mapping[str, Mapping[Key, Output]]
) -> dict[str, Any]:
    first = sides[0]
    boxes = []
    for target, colour in zip(first.objects, _COLOURS, strict=False):
        x1, y1, x2, y2 = target.box2d
        boxes.append({"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "colour": colour, "name": target.desc})
    return {
        "name": first.unit,
        "size": first.size,
        "image": jpeg_uri(image(first), _WIDTH),
        "boxes": boxes,
        "prompts": [(p, {way: _told(outputs.get((p.unit, p.side))) for way, outputs in said.items()}) for p in sides],
        "options": " / ".join(first.options) + _value(first),
    }


def _value(prompt: Prompt) -> str:
    if prompt.tolerance is not None:
        return f"(right within {prompt.tolerance:.1f} m)"
    return "" if prompt.value is None else f" (truth: {prompt.value:.1f} {scoring.BANDS[prompt.category][1]})"


def _told(output: Output | None) -> str:
    """What was answered: the answer alone where there is a tag."""
    if output is None or output.text is None:
        return f"({NO_OUTPUT if output is None else output.reason})"
    return extract(output.text) or output.text
