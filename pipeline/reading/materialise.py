"""`targets.zarr` of a dataset that has a view in its place, written after all: the bytes that `zarr: true` writes."""

from __future__ import annotations

from pipeline.reading.reader import Dataset
from pipeline.stores.column import zarr_specs
from pipeline.stores.records import read_records
from pipeline.stores.volume import Volume
from pipeline.stores.zarr import ZarrShardWriter, array_documents
from shards_schema import layout
from shards_schema.errors import ConfigError


def materialise(dataset: Dataset, to: str) -> int:
    """Write ``targets.zarr`` into a folder of its own, and give the samples of its largest column.

    Args:
        dataset: with every column open.
        to: a path or an fsspec URL, where nothing is yet.

    Raises:
        ConfigError: the dataset has no view.
        MissingFileError, DigestError, DatasetError: see `Dataset.read`.
    """
    if dataset.manifest.zarr != "view":
        made = str(dataset.manifest.zarr).lower()
        raise ConfigError(f"{dataset.url}: made with zarr: {made}, so it has no view that could be written out")
    source, out, plan = Volume(dataset.url), Volume(to), dataset.plan
    size = plan.config.shard_size
    path = f"{layout.ZARR}/zarr.json"
    out.put(path, source.read(path))
    for column, manifest in dataset.columns.items():
        specs, small = zarr_specs(manifest, True), zarr_specs(manifest, "view")
        for path, document in array_documents(column, specs, plan.shards, size).items():
            out.put(path, document)
        for record in read_records(source, column, range(plan.shards)):
            for spec in specs:
                path = layout.zarr_chunk(column, spec.name, record.shard, 1 + len(spec.shape))
                if spec in small:
                    out.put(path, source.read(path))
                    continue
                member = f"{spec.name}.npy"
                with out.create(path) as file:
                    writer = ZarrShardWriter(file, spec, size)
                    for token, row in zip(record.tokens, record.rows, strict=True):
                        writer.add(row - record.shard * size, dataset.read(token, {column: [member]})[column][member])
                    writer.finish()
    return max((len(dataset.tokens(column)) for column in dataset.columns), default=0)
