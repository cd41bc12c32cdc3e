"""The stream of one dataset, and the same samples as a table for the samplers of others.

The sample set is a join: the tokens that are written in every asked-for column. What was planned and quarantined in
one of them is counted in `left_out`; what is not committed yet is an error, not a shorter epoch.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset as MapDataset
from torch.utils.data import get_worker_info

from pipeline.reading.opened import Wanted
from pipeline.reading.reader import Dataset
from pipeline.stores.cache import CommittedFile
from pipeline.stream import order
from pipeline.stream.base import Place, Stream
from pipeline.stream.collate import Collate, collate_of
from pipeline.stream.config import StreamConfig
from pipeline.stream.fetch import Fetcher, Reading, Transform
from shards_schema.errors import AbsentError, ConfigError, IncompleteError

_ORDERS_KEPT = 2
"""A mixture reads the end of one epoch and the beginning of the next at once."""


class SampleTable(MapDataset[Any]):
    """The samples of the join by number, in plan order.

    Args:
        dataset: open for reading.
        targets: column -> names (targets, or members such as ``json`` and ``cam_f0.jpg``); None is all of a column.
            A column that is not named is not touched.
        tokens: keep only these, whatever their order.
        transform: applied to each sample, in the thread that read it.
        allow_incomplete: take what is committed of a dataset that is not finished.

    Attributes:
        tokens: in plan order.
        shards: int64, the plan shard of each, not falling.
        left_out: planned tokens that an asked-for column quarantined -> column, code and reason.
        digest: sha256 of the dataset's seal and of the tokens.

    Raises:
        AbsentError: no such column, member or token.
        IncompleteError: shards that are planned are not committed.
        ConfigError: there are no samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        targets: Wanted,
        *,
        tokens: Iterable[str] | None = None,
        transform: Transform | None = None,
        allow_incomplete: bool = False,
    ) -> None:
        self.fetcher = Fetcher(dataset, targets, transform)
        self.tokens, self.shards, self.left_out = _join(dataset, tuple(targets), tokens, allow_incomplete)
        text = "\n".join([dataset.digest, *self.tokens])
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def collate(self) -> Collate:
        """Makes batches; see `Collate`."""
        return collate_of(self.fetcher.dataset, self.fetcher.targets)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        columns = ", ".join(self.fetcher.targets)
        left_out = f", {len(self.left_out)} left out" if self.left_out else ""
        return f"SampleTable({self.fetcher.dataset.url!r}: {len(self)} samples of {columns}{left_out})"

    def __getitem__(self, index: int) -> Any:
        """One sample; see `Fetcher.read`.

        Raises:
            IndexError: no such number.
            DatasetError: it cannot be read; the notes name shard and token.
        """
        self.fetcher = self.fetcher.here()
        return self.fetcher.read(self.tokens[index])

    def reader(self, *, lazy: bool) -> Reading:
        """Reads samples by their numbers, for the process that asks; `lazy` as in `Fetcher.read`."""
        fetcher = self.fetcher = self.fetcher.here()

        def begin(indices: Sequence[int]) -> Any:
            return fetcher.begin([self.tokens[index] for index in indices])

        return Reading(begin, partial(fetcher.finish, lazy=lazy))


class ShardStream(Stream):
    """The samples of a dataset as an endless supply of epochs, dealt to ranks and workers, resumable anywhere.

    Arguments and errors are those of `SampleTable`, and:

    Args:
        config: order, split, batches, threads.
        rank: of this process; None asks torch.distributed, then the environment (torchrun's RANK), then it is 0.
        world_size: likewise.
    """

    def __init__(
        self,
        dataset: Dataset,
        targets: Wanted,
        config: StreamConfig | Mapping[str, Any] | None = None,
        *,
        tokens: Iterable[str] | None = None,
        transform: Transform | None = None,
        allow_incomplete: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.table = SampleTable(
            dataset, targets, tokens=tokens, transform=transform, allow_incomplete=allow_incomplete
        )
        super().__init__(config, len(self.table), rank, world_size)
        self._orders: OrderedDict[int, order.Indices] = OrderedDict()
        self._stretched: tuple[int, order.Indices, order.Indices, order.Indices] | None = None
        self._tars: Mapping[int, Sequence[CommittedFile]] = {}

    def __repr__(self) -> str:
        begins = f"epoch {self.epoch} from position {self.start}"
        return f"ShardStream({self.table!r}; {begins}; rank {self.rank} of {self.world_size})"

    @property
    def digest(self) -> str:
        """Of the dataset and its readable samples."""
        return self.table.digest

    @property
    def tokens(self) -> tuple[str, ...]:
        """In plan order."""
        return self.table.tokens

    @property
    def left_out(self) -> Mapping[str, str]:
        """Planned tokens that an asked-for column quarantined -> column, code and reason."""
        return self.table.left_out

    @property
    def collate(self) -> Collate:
        """Makes batches; see `Collate`."""
        return self.table.collate

    def order_of(self, epoch: int) -> order.Indices:
        """The global order of an epoch, [samples] indices into `tokens`: of (seed, epoch, digest, mode) only."""
        if epoch not in self._orders:
            config = self.config
            key = order.key_of(config.seed, epoch, self.digest)
            made = order.order(config.shuffle, self.table.shards, key, width=config.window, lanes=config.lanes)
            self._orders[epoch] = made
            while len(self._orders) > _ORDERS_KEPT:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def locate(self, epoch: int, positions: order.Indices) -> list[Place]:
        """See `Stream.locate`. Shards that are read soon after these positions begin to come into the cache."""
        if self._bringing and len(positions):
            self._bring(epoch, positions)
        return [(0, index) for index in self.order_of(epoch)[positions].tolist()]

    @property
    def _bringing(self) -> bool:
        """In plan order and window mode it is known which shards are next; in global mode all of them are."""
        return self.config.shuffle != "global" and self.table.fetcher.dataset.cache is not None

    def _bring(self, epoch: int, positions: order.Indices) -> None:
        """Fetch the shards of these positions and then the next ones, as many as the cache holds beside those in use.

        A hint: what it leaves out is fetched when it is read.
        """
        opened = self.table.fetcher.opened
        assert opened.cache is not None
        numbers, first, last = self._stretches(epoch)
        here, end = int(positions.min()), int(positions.max())
        workers = info.num_workers if (info := get_worker_info()) is not None else 1
        behind = (
            (self.config.prefetch + self.config.batch_size) * self.world_size * workers
        )  # located, perhaps not read
        mine = np.full(len(numbers), True)
        if self.config.shuffle == "window" and self.config.lanes % self.world_size == 0:
            mine = first % self.world_size == here % self.world_size  # a lane is read by one rank
        in_use = mine & (first <= end) & (last >= here - behind)
        ahead = np.flatnonzero(mine & (first > end))
        ahead = ahead[np.argsort(first[ahead], kind="stable")][: self.config.window]
        self._tars = self._tars or opened.tars(tuple(self.table.fetcher.targets))
        wanted = numbers[np.flatnonzero(in_use)].tolist()
        room = opened.cache.max_bytes - sum(map(self._bytes, wanted))
        for shard in numbers[ahead].tolist():
            room -= self._bytes(shard)
            if room < 0:
                break
            wanted.append(shard)
        opened.files.bring([tar for shard in wanted for tar in self._tars[shard]])

    def _bytes(self, shard: int) -> int:
        return sum(tar.digest.size for tar in self._tars[shard])

    def _stretches(self, epoch: int) -> tuple[order.Indices, order.Indices, order.Indices]:
        """The shards, and the first and last position of each in the order of an epoch."""
        if self._stretched is None or self._stretched[0] != epoch:
            numbers, dense = np.unique(self.table.shards[self.order_of(epoch)], return_inverse=True)
            places = np.arange(len(dense), dtype=np.int64)
            first, last = np.full(len(numbers), len(dense), np.int64), np.full(len(numbers), -1, np.int64)
            np.minimum.at(first, dense, places)
            np.maximum.at(last, dense, places)
            self._stretched = (epoch, numbers, first, last)
        return self._stretched[1:]

    def reader(self, *, lazy: bool) -> Reading:
        """See `Stream.reader`."""
        begin, finish = self.table.reader(lazy=lazy)
        return Reading(lambda places: begin([index for _, index in places]), finish)

    @property
    def works(self) -> bool:
        """See `Fetcher.works`."""
        return self.table.fetcher.works()


def _join(
    dataset: Dataset, columns: tuple[str, ...], keep: Iterable[str] | None, allow_incomplete: bool
) -> tuple[tuple[str, ...], order.Indices, Mapping[str, str]]:
    """Tokens written in every column, in plan order; their shards; what a column quarantined."""
    written = set(dataset.tokens(*columns))
    reasons: dict[str, str] = {}
    for column in columns:
        for token, q in dataset.quarantined(column).items():
            reasons.setdefault(token, f"{column}: {q.code}: {q.reason}")
    table = dataset.plan.table
    planned = table["token"].to_pylist()
    missing = sum(token not in written and token not in reasons for token in planned)
    if missing and not allow_incomplete:
        raise IncompleteError(
            f"{dataset.url}: {missing} of {len(planned)} planned samples stand in shards that are not committed in "
            f"every one of {', '.join(columns)}; finish the run, or say allow_incomplete=True"
        )
    if keep is not None:
        if not (wanted := set(keep)):
            raise ConfigError(f"{dataset.url}: no sample is asked for: tokens is empty")
        if unknown := wanted.difference(planned):
            raise AbsentError(f"{dataset.url}: {len(unknown)} asked-for tokens are in no plan, e.g. {min(unknown)}")
        written &= wanted
        reasons = {token: reason for token, reason in reasons.items() if token in wanted}
    places = [i for i, token in enumerate(planned) if token in written]
    if not places:
        raise ConfigError(f"{dataset.url}: no sample is written in every one of {', '.join(columns)} and asked for")
    shards = table["shard"].to_numpy()[places].astype(np.int64)
    return tuple(planned[i] for i in places), shards, reasons
