"""The source protocol: a dataset on disk, in two passes.

`scan` runs once, in the driver: it reads every log and keeps, of each scene, only what the plan needs (`SceneRef`,
some 100 bytes). `scenes` runs in the workers: it opens one log again and gives the full records of the scenes asked
for. Both passes must agree, so a source is frozen: it holds its config and nothing else, and pickles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from shards_schema.errors import SampleError
from shards_schema.records import Scene


@dataclass(frozen=True, slots=True, order=True)
class SceneRef:
    """A scene as the plan knows it.

    Attributes:
        log: the log's name.
        timestamp: microseconds of the current frame.
        token: the scene's id (that of its current frame).
        start: index in the log of the window's first frame.
    """

    log: str
    timestamp: int
    token: str
    start: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a source holds under its filter.

    Attributes:
        refs: every scene, sorted, each token once.
        unreadable: log name -> reason, for logs that could not be read at all.
        not_found: tokens that the filter asked for and no readable log has, sorted.
        skipped: how many windows were passed over, by reason (``no_route``, ``too_short``, ...), for the report.
    """

    refs: tuple[SceneRef, ...]
    unreadable: dict[str, str] = field(default_factory=dict)
    not_found: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """A dataset on disk."""

    @property
    def num_history(self) -> int:
        """H: frames of a scene up to and with the current one."""

    @property
    def num_future(self) -> int:
        """F: frames after the current one."""

    @property
    def synthetic(self) -> bool:
        """Whether this is generated data; every record that is made of it says so."""

    def describe(self) -> dict[str, Any]:
        """JSON for ``dataset.json``: kind, root, split, filter. No credentials."""

    def scan(self, *, processes: int = 1) -> Scan:
        """Read every log under the filter, `processes` at a time.

        Raises:
            ConfigError: the dataset is not there, or not laid out as this source expects.
        """

    def scenes(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | SampleError]:
        """The records of `refs` (all of `log`), in order; a `SampleError` in the place of one that cannot be made.

        Raises:
            SampleError: the log as a whole cannot be read (code ``log_unreadable``), which is so for all of `refs`.
        """
