"""Small units of questions, and SURDS' made-up folder (tests/data/questions)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from questions.surds import FILES, make_units, read_images
from questions.units import Prompt, Target, units_text

DATA = Path(__file__).parent / "data" / "questions"
SURDS = DATA / "surds"
BOX = (662.0, 504.0, 774.0, 545.0)
CARS = ("The white car", "The adult wearing blue clothes", "Almost the same")
WORDS = ("Southeast", "Northeast", "Southwest", "Northwest")
RANGES = ("Between 12 meters and 16 meters", "Between 4 meters and 10 meters", "Between 17 meters and 21 meters")


def prompt(category: str, options: tuple[str, ...] = (), answer: str = "", **given: Any) -> Prompt:
    """One prompt about one object, in `BOX`."""
    values: dict[str, Any] = {
        "unit": f"{category}-0",
        "benchmark": "surds",
        "style": "official",
        "split": "evaluation",
        "token": "nuscenes_0007_CAM_FRONT",
        "views": ("CAM_FRONT",),
        "size": (1600, 900),
        "objects": (Target(desc="white car", box2d=BOX, p_cam=(-1.9, 0.6, 21.4)),),
        "question": "?",
        **given,
    }
    return Prompt(category=category, options=options, answer=answer, **values)


def official_units() -> list[Prompt]:
    """Those of the made-up folder."""
    return make_units(read_images(SURDS, "validation"), "validation")


def official_files(folder: Path) -> Path:
    """SURDS' own question files for the made-up folder, as its script lays them out, in a wording of nobody."""
    folder.mkdir()
    gold = json.loads((SURDS / "official.json").read_text())
    for category, name in FILES.items():
        rows = []
        for unit in gold[category]:
            for side, answer in enumerate(unit["answers"]):
                listed = "".join(f"\n- {option}" for option in unit["options"])
                row = {
                    "image_path": f"eval_vqas/image/{unit['image']}",
                    "image_pixel": "1600x900",
                    "prompt": f"Word for word {side}\n"
                    + (f"Options: {listed}\n\n" if listed else "\n")
                    + "Tags, please.",
                    "answer": answer,
                }
                rows.append(row if unit["box"] is None else {**row, "obj_bbox": unit["box"]})
        (folder / name).write_text(json.dumps(rows))
    return folder


def write_units(path: Path, prompts: Iterable[Prompt]) -> Path:
    """A unit file."""
    path.write_text(units_text(list(prompts)))
    return path
