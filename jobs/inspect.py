"""`python -m jobs.inspect out=DIR [scenes=6] [page=PATH] [sizes_for=N]`: what is in a dataset, as text and as a page.

Works on what is there: an unfinished dataset is told as unfinished, a damaged column is named and left out. The page
lies beside the dataset, not in it (every file in a dataset is accounted for), and loads nothing from anywhere.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from jobs import config as job_config
from pipeline.reading.reader import Dataset
from pipeline.stores.disk import write_bytes
from pipeline.stores.places import OutPath, Place
from reports import pages
from reports.inspection import page, text
from reports.inspection.facts import NAVTRAIN_SCENES, Facts, gather
from reports.tables import bytes_text
from shards_schema.errors import ShardsError
from shards_schema.inputs.models import StrictModel


class InspectConfig(StrictModel):
    """What to look at."""

    out: Place
    """The dataset: a path or an fsspec URL."""
    scenes: int = Field(default=6, ge=0, le=10_000)
    """How many scenes the page shows."""
    page: OutPath | None = None
    """Where the page goes; None is ``<out>-inspect.html`` beside a local dataset, ``<name>-inspect.html`` in the
    working directory for any other."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of scenes."""
    sizes_for: int = Field(default=NAVTRAIN_SCENES, ge=1, le=1 << 40)
    """The text says what so many scenes take, in tars and with `targets.zarr`; as many as navtrain has."""


def main(arguments: list[str]) -> int:
    """Print the facts and write the page; returns the exit code.

    Raises:
        ConfigError: the page would lie inside the dataset.
        DatasetError: there is no dataset, or `dataset.json` is damaged.
    """
    config = job_config.load(InspectConfig, arguments)
    place = page_path(config)
    facts = gather(config.out)
    print(text.report(facts, config.sizes_for))
    dataset = readable(facts)
    tokens = page.choose(dataset, config.scenes, config.seed) if dataset is not None else []
    html = page.render(facts, dataset, tokens).encode("utf-8")
    write_bytes(place, html)
    print(f"\npage of {len(tokens)} scenes ({bytes_text(len(html))}): {place.resolve()}")
    return 0


def page_path(config: InspectConfig) -> Path:
    """Where the page goes: not into the dataset, where `make verify` would call it a fault."""
    return config.page or pages.beside(config.out, "inspect")


def readable(facts: Facts) -> Dataset | None:
    """The dataset with those columns that open; None where none does, or the plan is damaged."""
    good = []
    for column in facts.columns:
        if column.manifest is None:
            continue
        try:
            Dataset(facts.url, columns=[column.name])
        except ShardsError as error:
            print(f"\nthe page leaves out column {column.name}: {error}")
            continue
        good.append(column.name)
    if not good:
        return None
    dataset = Dataset(facts.url, columns=good)
    try:
        dataset.plan  # noqa: B018  (read here, so that a damaged plan is told once)
    except ShardsError as error:
        print(f"\nthe page shows no scenes: {error}")
        return None
    return dataset


if __name__ == "__main__":
    job_config.run(main)
