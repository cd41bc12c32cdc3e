"""The plan of a dataset that grew: what was planned first, and a generation for each time that its source had more.

    dataset.json  plan.parquet        what the first run planned; its seal stands in every commit record
    plan.1.json   plan.1.parquet      scenes that the source had more when the command was next given
    plan.2.json   plan.2.parquet      and so on

A generation has shards of its own, behind those that are there, and rows of its own in the Zarr arrays, whose shape is
all that changes of what was committed. It is dealt as a plan is, from its own scenes alone. Its table is written before
its document, and the document makes it: a growth that was interrupted is either there or is planned again.

Here they are read; `pipeline.writing.growth` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.codecs import seal_of
from shards_schema.errors import DatasetError, MissingFileError
from shards_schema.manifests import DatasetManifest, GenerationManifest
from shards_schema.plan import Plan, PlanConfig, joined


@dataclass(frozen=True, slots=True)
class Generations:
    """What `dataset.json` and the documents behind it say.

    Attributes:
        manifest: `dataset.json`.
        seal: its seal.
        later: the documents of the generations, in order.
        seals: theirs.
    """

    manifest: DatasetManifest
    seal: str
    later: tuple[GenerationManifest, ...]
    seals: tuple[str, ...]

    @property
    def shards(self) -> int:
        """Of all generations."""
        return int(self.manifest.plan["shards"]) + sum(int(g.plan["shards"]) for g in self.later)

    @property
    def now(self) -> DatasetManifest:
        """`dataset.json` as it would be were it of today: sums over all generations, the rest by the last of them."""
        if not self.later:
            return self.manifest
        last = self.later[-1]
        plans = [self.manifest.plan, *(g.plan for g in self.later)]
        sums = {what: sum(plan[what] for plan in plans) for what in ("samples", "shards")}
        return replace(self.manifest, source=last.source, plan={**last.plan, **sums, "generations": len(plans)})

    def plan(self, volume: Volume) -> Plan:
        """The plan of all generations.

        Raises:
            DatasetError: a table is missing, damaged, or not the one that its document names.
        """
        recorded = self.manifest.plan
        config = PlanConfig(shard_size=recorded["shard_size"], seed=recorded["seed"])
        parts = [_part(volume, layout.PLAN, layout.DATASET, recorded["digest"], config)]
        for g in self.later:
            names = layout.generation_plan(g.number), layout.generation(g.number)
            parts.append(_part(volume, *names, g.plan["digest"], config))
        return joined(parts)


def read(volume: Volume, manifest: DatasetManifest, seal: str) -> Generations:
    """The documents behind `dataset.json`.

    Raises:
        DatasetError: one is damaged, or of another dataset.
    """
    later: list[GenerationManifest] = []
    seals: list[str] = []
    shards = int(manifest.plan["shards"])
    while True:
        name = layout.generation(len(later) + 1)
        try:
            data = volume.read(name)
        except MissingFileError:
            return Generations(manifest, seal, tuple(later), tuple(seals))
        found = GenerationManifest.from_bytes(data, volume.path(name))
        expected = (len(later) + 1, seal, seals[-1] if seals else seal, shards)
        if (found.number, found.dataset, found.before, found.plan.get("first_shard")) != expected:
            raise DatasetError(
                f"{volume.path(name)}: it is a generation of another dataset, or of another place in this one; put "
                "back the file that the run wrote"
            )
        later.append(found)
        seals.append(seal_of(data))
        shards += int(found.plan["shards"])


def _part(volume: Volume, table: str, document: str, digest: str, config: PlanConfig) -> Plan:
    where = volume.path(table)
    plan = Plan.from_parquet(volume.read(table), config, where)
    if plan.digest != digest:
        raise DatasetError(f"{where}: plan digest {plan.digest}, {document} says {digest}")
    return plan
