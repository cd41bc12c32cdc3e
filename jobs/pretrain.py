"""Train the small networks that ship with the project: ``python -m jobs.pretrain [out=runs/pretrain] [key=value ...]``.

VGGT of the size ``town`` and a small CV8x8x8 learn from drives of the generated town that nothing else in the project
drives through; what they know of drives that they have not seen is printed at the end, beside baselines that know
nothing, and written into ``out/card.json`` beside the weights, which a recipe takes as ``weights: {path: out}``. The
same recipe on one kind of processor gives the same bytes. Exit code: 0; 2 when the config cannot be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from pydantic import PositiveInt

from jobs import config as job_config
from pipeline.stores.places import OutText
from pretraining import dynamics, geometry, heldout, shipped
from pretraining.footage import HELD_OUT, TRAINED, VIEWS, Footage, films
from pretraining.steps import Recipe
from pretraining.windows import FAR, rigs
from reports.inspection.colours import heat
from reports.progress import bar
from reports.tables import table

PICTURE = "depth.png"


class PretrainConfig(Recipe):
    """What to train, and where to leave it."""

    out: OutText = "runs/pretrain"
    """The folder of the weights, their card and a picture."""
    processes: PositiveInt = 2
    """That draw the drives."""

    def recipe(self) -> Recipe:
        """What decides the weights."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the job; gives the card."""
    config = job_config.load(PretrainConfig, arguments)
    recipe, out = config.recipe(), Path(config.out)
    torch.set_num_threads(1)  # each network has a core; another number gives other last bits, and in the end weights
    begin = time.monotonic()
    with bar(unit="drive", total=recipe.drives + recipe.held_out) as drawn:
        trained_on, held_out = (
            _filmed(count, first, config.processes, drawn.update)
            for count, first in ((recipe.drives, TRAINED), (recipe.held_out, HELD_OUT))
        )
    with bar(unit="step", total=recipe.geometry_steps + recipe.dynamics_steps) as steps, ThreadPoolExecutor(2) as pool:
        trained = [
            pool.submit(kind.train, recipe, trained_on, lambda *_: steps.update()) for kind in (geometry, dynamics)
        ]
        vggt, cosmos = (shipped.rounded(network.result()) for network in trained)
    random = geometry.untrained(recipe.seed), dynamics.untrained(recipe.seed)
    figures = {
        **heldout.geometry_table({"trained": vggt, "random weights": random[0]}, trained_on, held_out),
        "video": heldout.dynamics_table({"trained": cosmos, "random weights": random[1]}, trained_on, held_out),
    }
    card = shipped.write(out, vggt, cosmos, recipe, figures, round(time.monotonic() - begin))
    picture(vggt, held_out[:2]).save(out / PICTURE)
    for name, rows in figures.items():
        head = [name, *next(iter(rows.values()))]
        print("\n" + table(head, [[who, *(f"{value:.3f}" for value in row.values())] for who, row in rows.items()]))
    print(f"\n{recipe.held_out} drives in towns that were not trained on. {shipped.NOTICE}\n")
    print("\n".join(f"{digest}  {out / name}" for name, digest in card["sha256"].items()))
    return card


def _filmed(count: int, first: int, processes: int, done: Callable[[], Any]) -> list[Footage]:
    found = []
    for drive in films(count, first, processes):
        found.append(drive)
        done()
    return found


def picture(network: Any, drives: list[Footage]) -> Pillow.Image:
    """Of each drive three rows: the images of a moment, the truth, what the network says; near is bright."""
    guess, rows = heldout.seen_by(network), []
    for drive in drives:
        frames = rigs(drive)[1]
        order = [VIEWS.index(view) for view in ("CAM_L0", "CAM_F0", "CAM_R0")]
        truth = np.minimum(drive.depth[list(frames)], FAR)
        depth, _ = guess(drive, frames)
        depth = depth * np.median(truth[truth < FAR]) / np.median(depth[truth < FAR])
        low, high = -np.log(FAR), -np.log(2.0)
        maps = [[heat(-np.log(of[i]), low, high) for i in order] for of in (truth, depth)]
        rows += [np.hstack(row) for row in ([drive.images[frames[i]] for i in order], *maps)]
    return Pillow.fromarray(np.vstack(rows))


if __name__ == "__main__":
    job_config.run(main)
