"""How questions are put: ours, in the structure that SURDS' prompts have. Theirs come word by word from a user's copy.

A prompt says who looks and which convention holds, asks, lists the options, and asks for an answer between tags.
"""

from __future__ import annotations

from questions.units import Prompt

QUESTIONS: dict[str, tuple[str, ...]] = {
    "yaw": tuple(f"Suppose that the camera looks {way}. Which way does {{0}} face?" for way in ("north", "south")),
    "xy2d": ("Where in the image is {0}? Give one point [x, y] of it.",),
    "depth": ("How far is {0} from the camera, along the direction in which the camera looks?",),
    "dis": tuple(f"Which is {word} to the camera, {{0}} or {{1}}?" for word in ("closer", "farther")),
    "lr": tuple(f"Which is further {side} in the image, {{0}} or {{1}}?" for side in ("left", "right")),
    "fb": ("Is {0} in front of {1}?", "Is {0} behind {1}?"),
}
"""Category -> the question of each side; the objects have their article."""

CONVENTIONS: dict[str, str] = {
    "yaw": "Directions are those of the camera: what it looks at lies {ahead}; the right of the image is {right}. An "
    "object whose rear is seen faces {ahead}.",
    "xy2d": "Coordinates are pixels of an image of {width} x {height}, from its upper left corner.",
    "depth": "The distance is measured along the viewing axis.",
    "dis": "The distance is that to the camera.",
    "lr": "Left and right are those of the image.",
    "fb": "An object is in front of another one if it is further ahead, away from the camera.",
}

FORM = "Think first, between <think> and </think>. Then give the final answer, {what}, between <answer> and </answer>."


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
    form = FORM.format(what="one of the options" if options else "the point alone")
    task = f"Task Description\nThis is a picture of a camera on a car. {convention}"
    return f"{task}\n\nQuestion\n{prompt.question}\n{listed}\n{form}"
