"""What a run stands on: looked at before it begins, again before each record, and when it is finalised.

Before anything is written, `refuse_unaccounted` asks whose folder that is: a dataset's (with `dataset.json`), an empty
one, or one that a run was killed in before it had written that first file (nothing but ``.lock`` and files under way).
Documents that follow from others (`plan.parquet`, each ``zarr.json``) are made anew where they are gone and refused
where they are others (`renew`). While the run works, and at its end, `dataset.json` and `column.json` must be those
that it began with: a folder that was moved, removed, unmounted or exchanged ends the run, and nothing is made in its
place (`refuse_other`; `Volume` makes no root twice).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from pipeline.stores.disk import gone
from pipeline.stores.places import dataset_around
from pipeline.stores.records import columns_of, committed, read_manifest, read_record
from pipeline.stores.volume import UNDER_WAY, Volume
from shards_schema import layout
from shards_schema.errors import ConfigError, DatasetError, MismatchError, MissingFileError, ShardsError
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import Plan

_OF_THE_DISK = re.compile(r"lost\+found/?|\.nfs[0-9a-f]+")
"""What a file system has for itself: a mount point may be the root of a dataset."""
_NAMED = 5


def refuse_unaccounted(volume: Volume) -> None:
    """Refuse a folder that is somebody else's. Nothing is written.

    Raises:
        MismatchError: it has no `dataset.json`, and other files than a run leaves that was killed while it began.
        DatasetError: its `dataset.json` is not ours, or damaged.
        ConfigError: it lies in another dataset.
    """
    root = volume.local_root
    if root is not None and (around := dataset_around(root.parent)) is not None:
        raise ConfigError(f"{root} lies in the dataset {around}, where every file is accounted for: give another out")
    if volume.exists(layout.DATASET):
        read_manifest(volume)
        return
    if columns_of(volume):  # ours, and its dataset.json is lost: `vouch` says whether it can be written anew
        return
    top = [*volume.names(""), *(f"{name}/" for name in volume.folders(""))]
    ours = {layout.LOCK, f"{layout.TEMP}/"}
    if {f"{layout.LOGS}/{name}" for name in volume.names(layout.LOGS)} <= {layout.BATCH_SIZES}:  # `jobs.probe` was here
        ours.add(f"{layout.LOGS}/")
    strange = [name for name in top if name not in ours and not _OF_THE_DISK.match(name)]
    left = [*volume.names(layout.TEMP), *(f"{name}/" for name in volume.folders(layout.TEMP))]
    strange += [f"{layout.TEMP}/{name}" for name in left if not UNDER_WAY.search(name)]
    if strange:
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        raise MismatchError(
            f"{_root(volume)} is not empty ({', '.join(sorted(strange)[:_NAMED])}{more}) and has no {layout.DATASET}: "
            "expected an empty folder or a dataset, and nothing is written among other files. Give another folder "
            "(out=DIR)"
        )


def vouch(volume: Volume, dataset: str, manifest: ColumnManifest) -> None:
    """Hold one record of a column against documents that are about to be written anew.

    Args:
        dataset: seal of the `dataset.json`.
        manifest: the `column.json`.

    Raises:
        MismatchError: what is committed there was made under others.
    """
    for shard in committed(volume, manifest.column)[:1]:
        record = read_record(volume, manifest.column, shard)
        if (record.dataset, record.fingerprint) != (dataset, manifest.fingerprint):
            raise MismatchError(
                f"{_root(volume)}: a document of it is gone, and what this command would write in its place is not "
                f"what column {manifest.column} was committed under (dataset {record.dataset[:12]}, fingerprint "
                f"{record.fingerprint[:12]}; here {dataset[:12]}, {manifest.fingerprint[:12]}): bring the file back, "
                "or give the config and the release of that time"
            )


def renew(volume: Volume, documents: Mapping[str, bytes]) -> None:
    """Write those of some JSON documents that are gone; they follow from others, so the bytes are those of before.

    Raises:
        DatasetError: one is there and says something else.
    """
    for name, data in documents.items():
        _renew(volume, name, data, lambda found, data=data: json.loads(found) == json.loads(data))  # type: ignore[misc]


def renew_plan(volume: Volume, plan: Plan) -> None:
    """The same for `plan.parquet`."""
    where = volume.path(layout.PLAN)

    def same(found: bytes) -> bool:
        return Plan.from_parquet(found, plan.config, where).digest == plan.digest

    _renew(volume, layout.PLAN, plan.to_parquet(), same)


def _renew(volume: Volume, name: str, data: bytes, same: Callable[[bytes], bool]) -> None:
    try:
        found = volume.read(name)
    except MissingFileError:
        volume.put(name, data)
        return
    try:
        if found == data or same(found):  # other bytes may say the same: another release of pyarrow, of zarr
            return
    except (ShardsError, ValueError):
        pass  # damaged
    raise DatasetError(
        f"{volume.path(name)} is damaged, or another dataset's: it is not what follows from {layout.DATASET} and the "
        "columns; remove it and run the same command again, which writes it anew"
    )


def refuse_other(volume: Volume, dataset: str, *columns: ColumnManifest) -> None:
    """Whether the dataset is still the one that was begun; asked before each record, and at the end.

    Args:
        dataset: seal of its `dataset.json`.
        columns: the manifests that stood in their `column.json`.

    Raises:
        StoreError: it is gone.
        MismatchError: another one is in its place.
        DatasetError: a document of it is damaged.
    """
    try:
        _, found = read_manifest(volume)
        if found != dataset:
            raise MismatchError(
                f"{volume.path(layout.DATASET)} is not the one that this run began with (it was {dataset[:12]}, now "
                f"{found[:12]}): another dataset is in its place, and nothing more is written there"
            )
        for manifest in columns:
            path = layout.column_json(manifest.column)
            there = ColumnManifest.from_bytes(volume.read(path), volume.path(path))
            if there.fingerprint != manifest.fingerprint:
                raise MismatchError(
                    f"{volume.path(path)} is not the one that this run began with, and nothing more is written there"
                )
    except MissingFileError as error:
        raise gone(_root(volume), str(error)) from error


def _root(volume: Volume) -> str:
    return volume.path("").rstrip("/")
