"""`python -m jobs.fidelity data=DIR [key=value ...]`: what each storage choice of each target costs and loses.

Measured on a dataset's targets (one that is stored as float16 is measured from there: what was lost before is lost).
With ``sft=RECIPE`` the recipe is run on the dataset in each storage, and its held-out figures are put side by side. The
columns of the table are explained in docs/fidelity.md. Exit code: 0; 2 when the config cannot be.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from jobs import config as job_config
from jobs import sft
from pipeline.reading.reader import Dataset
from pipeline.stores.disk import write_json
from pipeline.stores.fidelity import COSINE
from pipeline.stores.places import OutText, Place
from reports.inspection.facts import NAVTRAIN_SCENES
from reports.storage.figures import HEAD, Figures, measure, stored
from reports.storage.probed import Probed
from reports.storage.restored import restore
from reports.tables import table
from shards_schema import layout
from shards_schema.errors import ConfigError, SpecError
from shards_schema.inputs.models import StrictModel
from shards_schema.storage import CHOICES, possible
from trainer.config import SFTConfig


class FidelityConfig(StrictModel):
    """What to measure."""

    data: Place
    """A committed dataset."""
    columns: tuple[str, ...] | None = None
    """Of it; None is all teachers' columns."""
    samples: int = Field(default=64, ge=1)
    """Of the dataset, spread over it, whose bytes and cosines are measured."""
    probes: int = Field(default=2000, ge=0)
    """At most so many scenes, spread over it, that linear probes (`jobs.signal`) learn on; 0 is no probes."""
    sft: str | None = None
    """A recipe of `jobs.sft`; its targets are stored in each choice, and the student trained on each."""
    overrides: tuple[str, ...] = ()
    """``key=value`` for that recipe, as on its own command line."""
    choices: tuple[str, ...] = CHOICES
    """That are trained on."""
    out: OutText | None = None
    """Folder for `fidelity.json`, and for the datasets and students of `sft`."""


def main(arguments: list[str]) -> dict[str, list[Figures]]:
    """Run the job; gives the figures of each target."""
    config = job_config.load(FidelityConfig, arguments)
    if config.sft is not None and config.out is None:
        raise ConfigError("sft needs out=DIR (where the datasets and students go)")
    dataset = Dataset(config.data)
    results: dict[str, list[Figures]] = {}
    columns = config.columns or [c for c in dataset.columns if c != layout.SAMPLES]
    probed = Probed(dataset, columns, config.probes)
    for column in columns:
        for spec, samples in stored(dataset, column, config.samples):
            lost = probed.choices(column, spec)
            rows = [replace(f, probes=lost.get(f.choice)) for f in measure(spec, samples)]
            results[name := f"{column}/{spec.name}"] = rows
            print(f"\n{name}: {spec.dtype} {list(spec.shape)}; {spec.meaning}")
            print(table(HEAD, [f.row() for f in rows]), flush=True)
        for name, (largest, less) in probed.in_place(column).items():
            print(f"\n{column}/{name} in place of {largest}: R2 lost {less.lost}, the most {less.most} of {less.worst}")
    print(
        f"\nTB for {NAVTRAIN_SCENES:,} scenes, tars alone (targets.zarr is as much again). int8 is offered where the "
        f"1st percentile (p1) of both cosines is at least {COSINE}; the writer holds each shard to it.\n"
        f"R2: {probed.about}."
    )
    for notice in dataset.manifest.notices:
        print(f"NOTE: {notice}")
    trained = {} if config.sft is None else _train(config, dataset)
    if config.out is not None:
        targets = {name: [f.to_json() for f in rows] for name, rows in results.items()}
        write_json(Path(config.out) / "fidelity.json", {"targets": targets, "sft": trained})
    return results


def _train(config: FidelityConfig, dataset: Dataset) -> dict[str, dict[str, float]]:
    """Choice -> held-out figures of the last stage of the recipe, on the dataset stored so."""
    assert config.sft is not None
    assert config.out is not None
    recipe = job_config.load(SFTConfig, [config.sft, *config.overrides, f"data={config.data}", f"out={config.out}"])
    wanted = {(t.column, t.target) for t in recipe.targets.values()}
    trained: dict[str, dict[str, float]] = {}
    for choice in ("as it is", *config.choices):
        storage: dict[str, dict[str, str]] = {column: {} for column, _ in sorted(wanted)}
        for column, target in sorted(wanted):
            spec = dataset.specs(column)[target]
            if choice in possible(spec) and choice != spec.dtype:
                storage[column][target] = choice
        if choice != "as it is" and not any(storage.values()):
            continue  # the same as it is
        folder = Path(config.out) / choice.replace(" ", "_")
        try:
            restore(dataset, str(folder / "data"), storage)
        except SpecError as error:
            print(f"\n{choice}: NOT OFFERED: {error}")
            continue
        print(f"\ntraining on {choice}: {json.dumps(storage)}", flush=True)
        rows = sft.main([config.sft, *config.overrides, f"data={folder / 'data'}", f"out={folder / 'sft'}"])
        trained[choice] = dict(rows[f"stage {recipe.stages[-1].stage}"])
    keys = [k for k in next(iter(trained.values()), {}) if k.startswith(("ade", "fde", "cosine", "answer"))]
    print("\n" + table(["stored as", *keys], [[c, *(f"{m[k]:.4f}" for k in keys)] for c, m in trained.items()]))
    return trained


if __name__ == "__main__":
    job_config.run(main)
