"""A dataset again, with its targets in another storage: for comparing what students make of each.

Values are taken as a reader gets them, so nothing can be won back that the first storage lost. The result is a dataset
of its own (same plan, same samples) that verifies; no teacher runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.reading.reader import Dataset
from pipeline.stores import index, statistics
from pipeline.stores.column import ColumnShardWriter, zarr_specs
from pipeline.stores.records import committed, read_record, read_records
from pipeline.stores.volume import Volume
from pipeline.stores.zarr import array_documents
from shards_schema import layout
from shards_schema.errors import SampleError
from shards_schema.manifests import ColumnManifest
from shards_schema.statistics import measured
from shards_schema.storage import read_specs, stored_specs


def restore(dataset: Dataset, to: str, storage: Mapping[str, Mapping[str, str]]) -> None:
    """Write `dataset` at `to`, where nothing is yet.

    Args:
        dataset: open with `samples` and the columns of `storage`.
        to: a path or an fsspec URL.
        storage: column -> target -> choice.

    Raises:
        ConfigError: a target cannot have its choice.
        SpecError: int8 loses too much of one.
    """
    source, out = Volume(dataset.url), Volume(to)
    for path in source.walk():
        documents = (layout.DATASET, f"{layout.ZARR}/zarr.json")
        if path in documents or path.startswith(("plan.", f"{layout.SAMPLES}/", f"{layout.ZARR}/{layout.SAMPLES}/")):
            out.put(path, source.read(path))
    for column, choices in storage.items():
        recorded = dataset.columns[column]
        manifest = replace(recorded, targets=stored_specs(read_specs(recorded.targets), choices))
        _column(dataset, source, out, manifest)
    columns = sorted({layout.SAMPLES, *storage})
    records = (record for column in columns for record in read_records(out, column, committed(out, column)))
    index.write(out, records, dataset.plan)


def _column(dataset: Dataset, source: Volume, out: Volume, manifest: ColumnManifest) -> None:
    column, plan = manifest.column, dataset.plan
    if specs := zarr_specs(manifest, dataset.manifest.zarr):
        documents = array_documents(column, specs, plan.shards, plan.config.shard_size)
        for path, document in documents.items():
            out.put(path, document)
    out.put(layout.column_json(column), manifest.to_bytes())
    shards = committed(source, column)
    for shard in shards:
        record = read_record(source, column, shard)
        writer = ColumnShardWriter(
            out,
            manifest,
            dataset=dataset.digest,
            shard=shard,
            shard_size=plan.config.shard_size,
            zarr=dataset.manifest.zarr,
        )
        with writer:
            for token, row in zip(record.tokens, record.rows, strict=True):
                writer.add_targets(token, row, dataset.read(token, {column: None})[column])
            for q in record.quarantined:
                writer.quarantine(q.token, q.row, SampleError(q.code, q.reason))
            writer.commit([*record.tokens, *(q.token for q in record.quarantined)])
    if measured(manifest.targets) and len(shards) == plan.shards:
        statistics.write(out, column, shards)
