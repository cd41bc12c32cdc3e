"""Does a worker see what the driver sees? Checked before its weights are loaded; one scene and one image are read.

A folder that is not mounted on a node would not fail there: every image of it is *missing*, which quarantines samples,
and an output path on the node's own disk takes the shards that nobody finds again. So the driver leaves a mark in the
dataset and notes what it finds of the first planned scene; a worker that finds anything else is refused, by host name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.sources.base import Source
from pipeline.stores.volume import Volume
from pipeline.writing import run as runs
from pipeline.writing.images import read_image
from pipeline.writing.recipe import Recipe
from pipeline.writing.worker import ShardWorker
from shards_schema import layout
from shards_schema.errors import MismatchError, MissingFileError, SampleError
from shards_schema.plan import PlannedScene

_PROPAGATION = 10.0
"""Seconds until a network file system must have shown a new file."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What the driver sees.

    Attributes:
        dataset: digest of `dataset.json`.
        mark: a file of this run in the dataset, where that lies on a file system; stores have one truth for all.
        scene: the first planned one.
        found: what reading it, and its first image, brings.
    """

    dataset: str
    mark: str | None
    scene: PlannedScene
    found: str


def take(source: Source, volume: Volume, scene: PlannedScene) -> Preflight:
    """Look, and leave the mark. It lies among the files under way, which the end of the run sweeps."""
    mark = None
    if volume.local_root is not None:
        mark = f"{layout.TEMP}/driver-{uuid.uuid4().hex}"
        volume.put(mark, b"")
    return Preflight(_dataset(volume), mark, scene, _first_scene(source, scene))


def maker(run: runs.Run, config: Recipe, source: Source, first: PlannedScene, **more: Any) -> Callable[[], ShardWorker]:
    """What makes a run's workers, wherever it is called: `take` of the first scene here, `worker` there.

    `more`: the arguments of `ShardWorker` that neither run nor config have.
    """
    return functools.partial(
        worker,
        take(source, run.volume, first),
        source=source,
        volume=run.volume,
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=config.plan.shard_size,
        zarr=run.manifest.zarr,
        config=config.worker,
        **more,
    )


def worker(expected: Preflight, **arguments: Any) -> ShardWorker:
    """A `ShardWorker` of these arguments, on a machine that sees what the driver saw.

    Raises:
        MismatchError: it does not; host, path and what was expected there are named.
    """
    compare(expected, arguments["source"], arguments["volume"])
    return ShardWorker(**arguments)


def compare(expected: Preflight, source: Source, volume: Volume) -> None:
    """See `worker`."""
    here = f"the worker on host {socket.gethostname()} (working directory {os.getcwd()})"
    dataset = _dataset(volume)
    if dataset != expected.dataset or not _marked(volume, expected.mark):
        raise MismatchError(
            f"{here} does not see the driver's dataset at {volume.path('').rstrip('/')}: dataset.json there is "
            f"{dataset}, the driver's is {expected.dataset}"
            + (", and the driver's mark is not there" if dataset == expected.dataset else "")
            + "; give an out that every node shares: an object store's URL, or a path on a network file system"
        )
    found = _first_scene(source, expected.scene)
    if found != expected.found:
        raise MismatchError(
            f"{here} does not see the driver's data: of the first scene, {expected.scene.ref.token} of log "
            f"{expected.scene.ref.log}, it has {found}, the driver has {expected.found}; is source.root a path that "
            "every node mounts, or an object store's URL?"
        )


def _dataset(volume: Volume) -> str:
    try:
        return hashlib.sha256(volume.read(layout.DATASET)).hexdigest()[:12]
    except MissingFileError:
        return "nothing"


def _marked(volume: Volume, mark: str | None) -> bool:
    deadline = time.monotonic() + _PROPAGATION
    while mark is not None and not volume.exists(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _first_scene(source: Source, planned: PlannedScene) -> str:
    """The digest of its first image; the error where it cannot be had, which may be the data's own."""
    try:
        scene = source.scenes(planned.ref.log, [planned.ref])[0]
        if isinstance(scene, SampleError):
            return f"the error {scene.code}"
        cameras = scene.at(0).cameras
        if not cameras:
            return "no camera"
        image = cameras[min(cameras)].image
        data = read_image(image, absent=(image,))  # what is not there for the driver is compared as that
    except SampleError as error:
        return f"the error {error.code}"
    return f"image {hashlib.sha256(data).hexdigest()[:12]}"
