"""How questions are put: ours, in the structure that SURDS' prompts have. Theirs come word by word from a user's copy.

A prompt says who looks and which convention holds, asks, lists the options, and asks for an answer between tags.
"""

from __future__ import annotations

from collections.abc import Sequence

from questions.units import Prompt

QUESTIONS: dict[str, tuple[str, ...]] = {
    "yaw": tuple(f"Suppose that the camera looks {way}. Which way does {{0}} face?" for way in ("north", "south")),
    "xy2d": ("Where in the image is {0}? Give one point [x, y] of it.",),
    "depth": ("How far is {0} from the camera, along the direction in which the camera looks?",),
    "dis": tuple(f"Which is {word} the camera, {{0}} or {{1}}?" for word in ("closer to", "farther from")),
    "lr": tuple(f"Which is further {side} in the image, {{0}} or {{1}}?" for side in ("left", "right")),
    "fb": ("Is {0} in front of {1}?", "Is {0} behind {1}?"),
    "ego_speed": ("Over the last 1.5 seconds, what did the car that carries the camera do with its speed?",),
    "ego_turn": ("Over the last 1.5 seconds, which way did the car that carries the camera turn?",),
    "moves": ("Is {0} moving?", "Is {0} standing still?"),
    "heading_motion": tuple(
        f"Suppose that the camera looks {way}. Which way does {{0}} travel?" for way in ("north", "south")
    ),
    "closing": tuple(
        f"Over the last second, did {{0}} get {word} the car that carries the camera?"
        for word in ("closer to", "farther from")
    ),
    "faster": tuple(f"Which is {word}, {{0}} or {{1}}?" for word in ("faster", "slower")),
    "speed_range": ("How fast is {0}?",),
    "ego_next": ("Over the next 4 seconds, what will the car that carries the camera do?",),
    "where_later": (
        "Where will {0} be in 2 seconds? Give one place [x, y] in meters, as seen from where the car is now.",
    ),
    "gap_later": tuple(
        f"In 2 seconds, will the distance between {{0}} and the car that carries the camera be {word}?"
        for word in ("larger", "smaller")
    ),
    "first": (
        "Within the next 4 seconds, to which will the car that carries the camera come nearer, {0} or {1}?",
        "Within the next 4 seconds, from which will the car that carries the camera stay farther away, {0} or {1}?",
    ),
}
"""Category -> the question of each side; the objects have their article."""

_DRIVEN = "Speeding up and slowing down count from 0.5 meters per second squared on, in the mean."

CONVENTIONS: dict[str, str] = {
    "yaw": "Directions are those of the camera: what it looks at lies {ahead}; the right of the image is {right}. An "
    "object whose rear is seen faces {ahead}.",
    "xy2d": "Coordinates are pixels of an image of {width} x {height}, from its upper left corner.",
    "depth": "The distance is measured along the viewing axis.",
    "dis": "The distance is that to the camera.",
    "lr": "Left and right are those of the image.",
    "fb": "An object is in front of another one if it is further ahead, away from the camera.",
    "ego_speed": _DRIVEN,
    "ego_turn": "Left and right are the driver's.",
    "moves": "What moves is what moves over the ground, whatever the car does.",
    "heading_motion": "Directions are those of the camera now: what it looks at lies {ahead}; the right of the image "
    "is {right}. What counts is the way over the ground, whatever the car does.",
    "closing": "The distance is that between the car and the middle of the object.",
    "faster": "Speeds are those over the ground.",
    "speed_range": "The speed is that over the ground.",
    "ego_next": f"{_DRIVEN} Left and right are the driver's.",
    "where_later": "x is meters ahead of the car's rear axle, y meters to its left, of the middle of the object.",
    "gap_later": "The distance is that between the car and the middle of the object; both move.",
    "first": "What counts is the least distance between the outlines of the car and the object, while both move.",
}

SEVERAL = (
    "This is what a camera on a car sees. Of several pictures the last one is of now, and those before lead to it."
)
FORM = "Think first, between <think> and </think>. Then give the final answer, {what}, between <answer> and </answer>."


def taken(backs: Sequence[int]) -> str:
    """What a model is told of pictures that were taken so many half seconds ago; "" where all are of now."""
    ago = [f"picture {number} {f'{back / 2:g} s ago' if back else 'now'}" for number, back in enumerate(backs, 1)]
    return f"When they were taken: {', '.join(ago)}.\n" if any(backs) else ""


def question(category: str, side: int, *descs: str) -> str:
    """The question of one side about these objects."""
    return QUESTIONS[category][side - 1].format(*(f"the {desc}" for desc in descs))


def whole(prompt: Prompt) -> str:
    """All of a prompt: as it was given, else in our words."""
    if prompt.text is not None:
        return prompt.text
    ahead, right = ("north", "east") if prompt.side == 1 else ("south", "west")
    width, height = prompt.size
    convention = CONVENTIONS[prompt.category].format(ahead=ahead, right=right, width=width, height=height)
    options = "".join(f"\n- {option}" for option in prompt.options)
    listed = f"\nOptions:{options}\n" if options else ""
    form = FORM.format(what="one of the options" if options else f"the {prompt.kind.metric} alone")
    picture = SEVERAL if prompt.past else "This is a picture of a camera on a car."
    task = f"Task Description\n{picture} {convention}"
    return f"{task}\n\nQuestion\n{prompt.question}\n{listed}\n{form}"
