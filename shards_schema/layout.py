"""Where everything lies in a dataset, as paths relative to its root, with "/" on every store.

dataset.json  plan.parquet  index.parquet  quarantine.parquet
plan.1.json  plan.1.parquet  ...      (of a dataset that grew: a generation of the plan each)
<column>/column.json  <column>/000000.tar  <column>/000000.json  <column>/000000.stats.parquet
<column>/statistics.parquet
targets.zarr/zarr.json  targets.zarr/<column>/zarr.json  targets.zarr/<column>/<target>/{zarr.json, c/0/0/...}
targets.view/.zmetadata  targets.view/<column>/<target>/{refs.0.parq, fill}      (where the recipe says zarr: view)
logs/...   (timings, witnesses of the images that were read: the only files that two equal runs do not write alike)
.tmp/...   (files under way; swept when a run starts)
.lock      (who is writing, while it is written)
"""

from __future__ import annotations

SCHEMA_VERSION = 1
"""Raised when a reader of the last version could misread a dataset of the next; every document carries it."""

DATASET = "dataset.json"
PLAN = "plan.parquet"
INDEX = "index.parquet"
QUARANTINE = "quarantine.parquet"
ZARR = "targets.zarr"
VIEW = "targets.view"
LOGS = "logs"
BATCH_SIZES = f"{LOGS}/batch_sizes.json"
"""What `jobs.probe` measured; the one file that may be there before `dataset.json` is."""
TEMP = ".tmp"
LOCK = ".lock"

SAMPLES = "samples"
"""The one column that is not a teacher's: records, trajectories and the student's images."""

RESERVED = frozenset({SAMPLES, LOGS, "targets", "dataset", "plan", "index", "quarantine", "token"})
"""What no teacher's column may be called: the layout has these names at the root, or a reader's sample has the key."""

VALID = "valid"
"""``<column>/valid`` in the Zarr group: uint8, 1 where a row was written, 0 where it was quarantined or is unused."""


def generation(number: int) -> str:
    """What the n-th growth of a dataset (from 1 on) added to its plan: a generation exists when this file does."""
    return f"plan.{number}.json"


def generation_plan(number: int) -> str:
    """The rows that it added."""
    return f"plan.{number}.parquet"


def column_json(column: str) -> str:
    """What a column is: specs, provenance, fingerprint."""
    return f"{column}/column.json"


def tar(column: str, shard: int) -> str:
    """The members of one shard of one column."""
    return f"{column}/{shard:06d}.tar"


def record(column: str, shard: int) -> str:
    """The commit record. A shard exists when, and only when, this file does."""
    return f"{column}/{shard:06d}.json"


def withdrawn(column: str, shard: int, number: int | None = None) -> str:
    """A record that a later run has taken back, to make the shard again: kept, beside what equal runs do not share.

    `number` counts those of a shard from 1 on; without one it is that of the run which is not closed yet.
    """
    return f"{LOGS}/withdrawn/{column}/{shard:06d}{'' if number is None else f'.{number}'}.json"


def shard_log(shard: int) -> str:
    """The receipt of a shard that was made last: its timings, and one image a log of those that were read."""
    return f"{LOGS}/{shard:06d}.json"


def shard_statistics(column: str, shard: int) -> str:
    """Sums of each channel over one shard, which merge with those of the others."""
    return f"{column}/{shard:06d}.stats.parquet"


def statistics(column: str) -> str:
    """Mean, standard deviation, minimum and maximum of each channel over the whole column."""
    return f"{column}/statistics.parquet"


def shard_of_record(name: str) -> int | None:
    """The shard number of a record's file name (without folder), or None for any other file."""
    stem, dot, extension = name.rpartition(".")
    return int(stem) if dot and extension == "json" and stem.isdecimal() and len(stem) >= 6 else None


def past_image(camera: str, back: int) -> str:
    """How `samples` calls what a camera saw `back` frames before now (0: now): ``cam_f0``, ``cam_f0.past1``, ..."""
    return f"{camera}.past{back}" if back else camera


def camera_of(image: str) -> tuple[str, int]:
    """The inverse of `past_image`."""
    camera, _, past = image.partition(".past")
    return camera, int(past or 0)


def zarr_array(column: str, target: str) -> str:
    """The Zarr array of a target."""
    return f"{ZARR}/{column}/{target}"


def zarr_chunk(column: str, target: str, shard: int, ndim: int) -> str:
    """The one file of a Zarr array that holds plan shard `shard`; `ndim` counts the sample axis."""
    return "/".join([zarr_array(column, target), "c", str(shard), *["0"] * (ndim - 1)])


VIEW_METADATA = f"{VIEW}/.zmetadata"
"""The metadata of all arrays of a view."""


def view_table(column: str, target: str, number: int) -> str:
    """References to some chunks of a target."""
    return f"{VIEW}/{column}/{target}/refs.{number}.parq"


def view_fill(column: str, target: str) -> str:
    """What rows of a target that were not written refer to."""
    return f"{VIEW}/{column}/{target}/fill"
