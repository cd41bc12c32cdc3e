"""One shard of one column, from the first sample to the commit record.

Samples come in row order, are brought into the form in which the column stores them, and go straight to the tar and to
the Zarr shards; nothing of the shard is held but its index and the sums of each channel. `commit` puts the data files
in place and then, last, the record that makes them a shard. If anything raises before that, no file of this attempt is
left under its final name without being complete, and there is no record.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stores import statistics
from pipeline.stores.fidelity import Int8Gate
from pipeline.stores.tar import TarWriter
from pipeline.stores.volume import Buffer, FileWriter, Volume
from pipeline.stores.withdrawn import withdraw
from pipeline.stores.zarr import ZarrShardWriter, is_sharded
from shards_schema import layout
from shards_schema.codecs import npy_bytes
from shards_schema.commit import CommitRecord, Quarantined
from shards_schema.errors import DatasetError, SampleError
from shards_schema.manifests import ColumnManifest, ZarrMode
from shards_schema.specs import TargetSpec
from shards_schema.statistics import measured
from shards_schema.storage import computed_specs, decode, encode

VALID_SPEC = TargetSpec(
    name=layout.VALID, dims=(), shape=(), dtype="uint8", unit="1", meaning="1 where the row was written, else 0"
)


def zarr_specs(manifest: ColumnManifest, mode: ZarrMode) -> tuple[TargetSpec, ...]:
    """The arrays that a column has in `targets.zarr`: its targets that are not ragged, and `valid`.

    With `view` only those of which many samples share a chunk; without Zarr none.
    """
    every = (*(spec for spec in manifest.targets if not spec.ragged), VALID_SPEC)
    return tuple(spec for spec in every if mode is True or (mode == "view" and not is_sharded(spec)))


class ColumnShardWriter:
    """A context manager; leave it without `commit` and the shard does not exist.

    Args:
        volume: the dataset.
        manifest: of the column.
        dataset: seal of `dataset.json`.
        shard: number in the plan.
        shard_size: rows a shard has in Zarr.
        zarr: whether to write the Zarr arrays as well, and which.
        again: whether the shard has a record, which `commit` withdraws right before it puts other files in place.
    """

    def __init__(
        self,
        volume: Volume,
        manifest: ColumnManifest,
        *,
        dataset: str,
        shard: int,
        shard_size: int,
        zarr: ZarrMode,
        again: bool = False,
    ) -> None:
        self._again = again
        self._volume, self._manifest, self._dataset = volume, manifest, dataset
        self._shard, self._shard_size = shard, shard_size
        self._computed = computed_specs(manifest.targets)
        self._stored = {spec.name: spec for spec in manifest.targets}
        self._files: dict[str, FileWriter] = {}
        self._tokens: list[str] = []
        self._rows: list[int] = []
        self._quarantined: list[Quarantined] = []
        self._stack = ExitStack()
        self._tar = TarWriter(self._open(layout.tar(manifest.column, shard)))
        self._zarr: dict[str, ZarrShardWriter] = {}
        for spec in zarr_specs(manifest, zarr):
            path = layout.zarr_chunk(manifest.column, spec.name, shard, 1 + len(spec.shape))
            self._zarr[spec.name] = ZarrShardWriter(self._open(path), spec, shard_size)
        self._statistics = statistics.Collector(manifest)
        self._statistics_file = (
            self._open(layout.shard_statistics(manifest.column, shard)) if measured(manifest.targets) else None
        )
        self._gates = {
            spec.name: Int8Gate(spec.name, spec.channel_axis)
            for spec in manifest.targets
            if spec.encoding == "int8" and spec.channel_axis is not None
        }

    def _open(self, path: str) -> FileWriter:
        try:
            self._files[path] = self._stack.enter_context(self._volume.create(path))
        except BaseException:  # a constructor that raises is never left: give back what it opened before
            self._stack.__exit__(*sys.exc_info())
            raise
        return self._files[path]

    def __enter__(self) -> ColumnShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # the open files must see an exception, or they would put themselves in place
            kind, error = RuntimeError, RuntimeError("left without commit")
        self._stack.__exit__(kind, error, trace)

    def add_targets(self, token: str, row: int, targets: Mapping[str, NDArray[Any]]) -> bool:
        """Write one sample of a teacher; a value that is not finite, or too large for its storage, quarantines it.

        Args:
            token: of the sample.
            row: of it in the plan.
            targets: as the teacher computed them.

        Returns:
            Whether it was written.

        Raises:
            SpecError: the arrays are not what the specs say.
        """
        computed = {spec.name: np.asarray(targets[spec.name]) for spec in self._computed}
        stored: dict[str, NDArray[Any]] = {}
        try:
            for spec in self._computed:
                spec.check(computed[spec.name])
            for name, values in computed.items():
                stored |= encode(self._stored[name], values)
        except SampleError as error:
            self.quarantine(token, row, error)
            return False
        self.add(token, row, {f"{name}.npy": npy_bytes(array) for name, array in stored.items()}, stored)
        read = {name: decode(self._stored[name], stored) for name in computed}
        self._statistics.add(read)
        for name, gate in self._gates.items():
            gate.add(computed[name], read[name])
        return True

    def check_begun(self) -> None:
        """Asked after a batch: is it certain already that the shard cannot be committed?

        Raises:
            SpecError: int8 loses too much of a target.
        """
        for gate in self._gates.values():
            gate.check_begun(self._where, self._shard_size)

    @property
    def _where(self) -> str:
        return f"column {self._manifest.column}, shard {self._shard}"

    def add(
        self, token: str, row: int, members: Mapping[str, Buffer], arrays: Mapping[str, NDArray[Any] | str]
    ) -> None:
        """Write one sample: its tar members by extension, and its Zarr rows by target."""
        self._tar.add(token, members)
        slot = row - self._shard * self._shard_size
        for name, writer in self._zarr.items():
            writer.add(slot, np.uint8(1) if name == layout.VALID else arrays[name])  # type: ignore[arg-type]
        self._tokens.append(token)
        self._rows.append(row)

    def quarantine(self, token: str, row: int, error: SampleError) -> None:
        """Note a sample that cannot be written."""
        self._quarantined.append(Quarantined(token=token, row=row, code=error.code, reason=error.reason))

    def commit(self, planned: Sequence[str]) -> CommitRecord:
        """Put the files in place, then the record.

        Args:
            planned: the tokens that the plan has for this shard.

        Raises:
            DatasetError: the accounting does not close; nothing is committed.
            SpecError: int8 lost too much of a target; nothing is committed.
        """
        accounted = [*self._tokens, *(q.token for q in self._quarantined)]
        if sorted(accounted) != sorted(planned):
            raise DatasetError(
                f"{self._where}: planned {len(planned)} samples, accounted for "
                f"{len(accounted)} ({len(self._tokens)} written, {len(self._quarantined)} quarantined)"
            )
        for gate in self._gates.values():
            gate.check(self._where)
        self._tar.finish()
        for writer in self._zarr.values():
            writer.finish()
        if self._statistics_file is not None:
            self._statistics_file.write(statistics.shard_bytes(self._statistics.statistics))
        if self._again:
            withdraw(self._volume, self._manifest.column, self._shard)
        self._stack.close()
        record = CommitRecord(
            column=self._manifest.column,
            shard=self._shard,
            dataset=self._dataset,
            fingerprint=self._manifest.fingerprint,
            planned=len(planned),
            quarantined=tuple(sorted(self._quarantined, key=lambda q: q.row)),
            files={path: file.finish() for path, file in self._files.items()},
            tokens=tuple(self._tokens),
            rows=tuple(self._rows),
            members={name: tuple(places) for name, places in self._tar.members.items()},
        )
        self._volume.put(layout.record(self._manifest.column, self._shard), record.to_bytes())
        return record
