"""What the sources of driving logs have in common: their config, which logs they read, and one pass over them.

A source is a folder of log files under a scene filter. It brings a function that reads one log; here are the rules of
NAVSIM's devkit for all of them together, and where it is loose:

- Logs are read in the order of their names (the devkit: directory order), so `max_scenes` always means the same
  scenes; the log in which the limit falls is counted as a whole in `Scan.skipped`, later ones not at all.
- A token that two logs hold stops the scan: one of the scenes would be lost, and which one is not ours to choose.
- Second-stage synthetic scenes are no windows of logs; those that the filter lists are counted (``synthetic_scene``)
  where the source does not read them (`second_stage`). A filter
  that wants them without listing them is refused, since what is left out could not be counted.
- `Scan.not_found` holds the tokens asked for of which no window of a readable log passed the filter; it is empty when
  `max_scenes` ended the scan, since the rest was not looked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from loky import ProcessPoolExecutor
from pydantic import Field, field_validator, model_validator

from pipeline.sources import files
from pipeline.sources.base import Missing, Scan, Wanted
from pipeline.sources.scene_filter import SceneFilter
from pipeline.sources.untrusted import shown
from pipeline.stores.places import Place
from pipeline.stores.remote import refuse_credentials
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from shards_schema.plan import SceneRef


class LogsConfig(StrictModel):
    """Where logs are, and which of their scenes are wanted.

    Raises:
        ConfigError: no split, or one that is not the filter's own ``data_split``; a second stage that is not listed.
    """

    logs_folder: ClassVar[str]
    """The folder below `root` that the splits are in."""

    root: Place = Field(min_length=1)
    """The dataset's folder, or its URL."""
    split: str | None = None
    """The folder of logs; by default what the train_test_split file says."""
    filter: SceneFilter = SceneFilter()
    """A `SceneFilter`, its fields, or the path of one of the devkit's YAML files; None is its defaults."""
    context_frames: int = Field(1, ge=0)
    """How many frames before the window go into `Scene.before`, where the log has them without a gap."""

    @field_validator("filter", mode="before")
    @classmethod
    def _filter_loaded(cls, value: Any) -> Any:
        if value is None:
            return SceneFilter()
        return SceneFilter.load(value) if isinstance(value, Mapping | str | Path) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.data_split or "/" in self.data_split or self.data_split in (".", ".."):
            raise ConfigError(
                f"split should be a folder of {self.logs_folder} such as trainval, got {self.data_split!r}: set it, or "
                "give a train_test_split/*.yaml as filter"
            )
        if self.split and self.filter.data_split and self.split != self.filter.data_split:
            raise ConfigError(
                f"split is {self.split!r} and the filter's own data_split is {self.filter.data_split!r}: its logs and "
                "tokens are of that split; leave split out (split: null), or give the filter that belongs to it"
            )
        if self.filter.include_synthetic_scenes and not self.filter.second_stage:
            raise ConfigError(
                "the filter wants synthetic scenes but lists none, and they cannot be read here: "
                "set include_synthetic_scenes: false"
            )
        return self

    @property
    def data_split(self) -> str:
        """The split's folder."""
        return self.split or self.filter.data_split or ""

    @property
    def shown_root(self) -> str:
        """`root` without what a URL may hold of credentials, for messages and records."""
        return shown_url(self.root)

    @property
    def shown_folder(self) -> str:
        """The folder of the logs, likewise."""
        return f"{self.shown_root.rstrip('/')}/{self.logs_folder}/{self.data_split}"

    @property
    def folder(self) -> str:
        """The folder of the logs."""
        return f"{self.root.rstrip('/')}/{self.logs_folder}/{self.data_split}"

    @property
    def filter_summary(self) -> dict[str, Any]:
        """The filter as JSON; long lists as their count and the sha256 of their sorted members."""
        return {name: _summary(value) for name, value in self.filter}


class LogsSource(ABC):
    """What the sources of logs have in common; see `pipeline.sources.base.LookingSource`.

    Raises:
        ConfigError: a URL holds credentials, which would stand in records and reasons.
        StoreError: (any method) the disk or the store of the root failed too often; no log is given up for that.
    """

    __slots__ = ()
    config: LogsConfig

    def __post_init__(self) -> None:
        for url in (self.config.root, self.blobs):  # here, since pydantic's errors repeat what they refuse
            refuse_credentials(url)

    @property
    def num_history(self) -> int:
        """H, with the current frame."""
        return self.config.filter.num_history_frames

    @property
    def num_future(self) -> int:
        """F."""
        return self.config.filter.num_future_frames

    @property
    def num_before(self) -> int:
        """See `LookingSource`."""
        return self.config.context_frames

    @property
    def synthetic(self) -> bool:
        """Whether the root holds ``SYNTHETIC.json``."""
        return "SYNTHETIC.json" in files.names(self.config.root)

    @property
    @abstractmethod
    def blobs(self) -> str:
        """See `LookingSource`."""

    def scan(self, *, processes: int = 1) -> Scan:
        """See `Source.scan`; the result does not depend on `processes`.

        Raises:
            ConfigError: no log folder, a folder without logs, or a token that two logs hold.
        """
        return self.look({}, processes=processes)

    @abstractmethod
    def look(self, wanted: Wanted, *, processes: int = 1) -> Scan:
        """See `LookingSource.look`."""


def shown_url(url: str) -> str:
    """`url` without what it may hold of credentials, for messages and records."""
    return url if "://" not in url else re.sub(r"//[^/@]*@", "//", url.split("?")[0])


def wanted_logs(config: LogsConfig, entries: Iterable[str], suffix: str) -> tuple[list[str], dict[str, str]]:
    """The sorted names of the logs to read, and a reason for each one that is wanted and cannot be.

    Args:
        config: of the source.
        entries: names in the folder of the logs; those without `suffix` are passed over.
        suffix: of a log's file.

    Raises:
        ConfigError: there is none.
    """
    there = {name.removesuffix(suffix) for name in entries if name.endswith(suffix)}
    strange = {name for name in there if not name.isprintable()}  # bytes that are no UTF-8, or control characters
    if not there:
        hold = [split for split, logs in _other_splits(config, suffix) if logs]
        raise ConfigError(
            f"{config.shown_folder} should hold <log>{suffix} files, found none: check root and split"
            + (f"; there are logs of the splits {', '.join(hold)}" if hold else "")
        )
    names = config.filter.log_names
    wanted = there if names is None else set(names)
    unreadable = dict.fromkeys(wanted - there, f"no such log file in {config.shown_folder}")
    for split, held in _other_splits(config, suffix) if unreadable else ():
        for log in unreadable.keys() & held:
            unreadable[log] += f"; the split {split} has it"
    unreadable |= {shown(name): "its name is no printable text; rename it" for name in strange & wanted}
    return sorted((there & wanted) - strange), unreadable


def _other_splits(config: LogsConfig, suffix: str) -> Iterator[tuple[str, set[str]]]:
    """The splits beside the one that is read, and their logs."""
    folder = f"{config.root.rstrip('/')}/{config.logs_folder}"
    for split in sorted(files.names(folder) - {config.data_split}):
        yield split, {n.removesuffix(suffix) for n in files.names(f"{folder}/{split}") if n.endswith(suffix)}


@dataclass(frozen=True, slots=True)
class LogScan:
    """What one log holds under a filter.

    Attributes:
        refs: its scenes.
        skipped: windows that are none, by reason.
        examples: reason -> the first such window in words, for reasons that need them.
        gaps: tokens of the scenes that hold a gap in time; the first of them stands in `examples` as ``time_gap``.
        missing: the images that are looked for and not there.
    """

    refs: tuple[SceneRef, ...]
    skipped: Counter[str]
    examples: Mapping[str, str] = field(default_factory=dict)
    gaps: frozenset[str] = frozenset()
    missing: Missing = field(default_factory=dict)


LogReader = Callable[[frozenset[str] | None, str], LogScan | str]
"""(tokens that are wanted, or None for all; log) -> what it holds, or why it cannot be read. Pickles."""


def scan_logs(
    config: LogsConfig,
    logs: Sequence[str],
    unreadable: Mapping[str, str],
    read: LogReader,
    *,
    processes: int,
    chunk: int = 1,
) -> Scan:
    """One pass over logs; the result does not depend on `processes` and `chunk`.

    Args:
        config: of the source.
        logs: names, sorted.
        unreadable: logs that are known to be.
        read: of one log.
        processes: that read.
        chunk: most logs that a process is given at once.

    Raises:
        ConfigError: a token that two logs hold, and what `read` raises.
    """
    filter_, bad = config.filter, dict(unreadable)
    owners: dict[str, SceneRef] = {}
    clashes: list[str] = []
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    gaps: set[str] = set()
    lost: dict[str, dict[str, tuple[tuple[int, str], ...]]] = {}
    shared: dict[tuple[tuple[int, str], ...], tuple[tuple[int, str], ...]] = {}
    if second := filter_.second_stage:
        skipped["synthetic_scene"] = len(second)
    full = False
    one = partial(read, None if filter_.tokens is None else frozenset(filter_.tokens))
    chunk = 1 if filter_.max_scenes is not None else max(1, min(chunk, len(logs) // (4 * max(processes, 1))))
    with closing(each_log(one, logs, processes, chunk)) as results:
        for log, found in zip(logs, results, strict=False):
            if isinstance(found, str):
                bad[log] = found
                continue
            skipped.update(found.skipped)
            examples = {**found.examples, **examples}
            gaps |= found.gaps
            for ref in found.refs:
                if ref.token in owners:
                    clashes.append(f"{ref.token} in {owners[ref.token].log} and {log}")
                owners[ref.token] = ref
                for column, scenes in found.missing.items():
                    if (images := scenes.get(ref.token)) is not None:
                        lost.setdefault(column, {})[ref.token] = shared.setdefault(images, images)
                if full := len(owners) == filter_.max_scenes:
                    break
            if full:
                break
    if clashes:
        raise ConfigError(
            f"{config.shown_folder}: {len(clashes)} tokens are held by two logs, so one scene of each pair would be "
            f"lost: {'; '.join(clashes[:3])}. Remove one of the logs, or leave it out of log_names"
        )
    not_found = () if full or filter_.tokens is None else tuple(sorted(set(filter_.tokens) - owners.keys()))
    return Scan(
        tuple(sorted(owners.values())),
        dict(sorted(bad.items())),
        not_found,
        dict(skipped),
        examples,
        tuple(_notes(filter_, len(owners), len(gaps & owners.keys()), examples, skipped)),
        logs=len(logs) + len(unreadable),
        missing=lost,
    )


def _notes(
    filter_: SceneFilter, scenes: int, gaps: int, examples: Mapping[str, str], skipped: Counter[str]
) -> Iterator[str]:
    """What to know of the windows."""
    if scenes and filter_.frame_interval is None and filter_.tokens is None:
        yield (
            f"filter.frame_interval is null, so a window begins every {filter_.stride} frames and none overlap: "
            "1 takes every window"
        )
    if gaps:
        yield (
            f"{gaps} of {scenes} scenes hold a gap in time, which NAVSIM takes for one step (the first: "
            f"{examples['time_gap']}); source.gaps=drop leaves them out"
        )
    if crossing := skipped["other_log"] + skipped["other_scene"]:
        yield (
            f"{crossing} windows would run on into another log or scene and are not made; a smaller "
            "filter.num_future_frames ends before that (0 for private_test_hard, whose groups have five frames)"
        )


_One = Callable[[str], LogScan | str]

_worker: list[_One] = []
"""What a worker process does with each of its logs; sent once, since navtrain's tokens are 2 MB."""


def each_log(one: _One, logs: Sequence[str], processes: int, chunk: int) -> Generator[LogScan | str, None, None]:
    """What each log holds, in order. The processes are loky's, which do not run the caller's script again."""
    if processes <= 1 or len(logs) <= 1:
        yield from map(one, logs)
        return
    with ProcessPoolExecutor(min(processes, len(logs)), initializer=_begin_worker, initargs=(one,)) as pool:
        try:
            yield from pool.map(_in_worker, logs, chunksize=chunk)
        finally:  # when max_scenes ended the scan, do not read the rest
            pool.shutdown(kill_workers=True)


def _begin_worker(one: _One) -> None:
    _worker[:] = [one]


def _in_worker(log: str) -> LogScan | str:
    return _worker[0](log)


def _summary(value: Any) -> Any:
    """A short list, number or string as it is; a long list or a mapping as its size and digest."""
    if isinstance(value, tuple):
        value = sorted(set(value))
    if isinstance(value, list | dict) and len(value) > 8:
        text = json.dumps(value, sort_keys=True, default=str)
        return {"count": len(value), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return value
