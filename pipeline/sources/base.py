"""The source protocol: a dataset on disk, in two passes.

`scan` runs once, in the driver: it reads every log and keeps, of each scene, only what the plan needs (`SceneRef`,
some 100 bytes). `scenes` runs in the workers: it opens one log again and gives the full records of the scenes asked
for. Both passes must agree, so a source is frozen: it holds its config and nothing else, and pickles.

`missing` tells what the scenes of a log lack of the images that columns ask them for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from shards_schema.errors import ConfigError, SampleError
from shards_schema.plan import SceneRef
from shards_schema.records import Scene

_SHOWN = 3
"""Examples in a message."""


Wanted = Mapping[str, frozenset[tuple[int, str]]]
"""Column -> the images that it asks every scene for: (step from now, channel)."""


Missing = Mapping[str, Mapping[str, tuple[tuple[int, str], ...]]]
"""Column -> token of a scene -> the images that it asks for and the scene lacks: no such file, frame or camera."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a source holds under its filter.

    Attributes:
        refs: every scene, sorted, each token once.
        unreadable: log name -> reason, for logs that could not be read at all.
        not_found: tokens that the filter asked for and no readable log has, sorted.
        skipped: how many windows were passed over, by reason (``no_route``, ``too_short``, ...), for the report.
        examples: reason of `skipped` -> what the first such window was, where a count alone does not say enough.
        notes: what a person should know of the windows before the work begins, a sentence each.
        logs: how many logs were wanted, the unreadable ones among them; 0 where the source does not say.
        missing: of the images that were looked for (`LookingSource.look`).
    """

    refs: tuple[SceneRef, ...] = field(repr=False)
    unreadable: dict[str, str] = field(default_factory=dict)
    not_found: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    logs: int = 0
    missing: Missing = field(default_factory=dict, repr=False)

    @property
    def passed_over(self) -> str:
        """`skipped` in words, with the first example of each reason that has one; "" for none."""
        return ", ".join(
            f"{count} {reason}" + (f" (the first: {self.examples[reason]})" if reason in self.examples else "")
            for reason, count in sorted(self.skipped.items())
        )

    def refuse_nothing(self) -> None:
        """Refuse a scan that found no scene, with all that it knows of the reasons.

        Raises:
            ConfigError: there are no scenes.
        """
        if self.refs:
            return
        why = []
        if self.unreadable:
            first = "; ".join(f"{log}: {reason}" for log, reason in list(self.unreadable.items())[:_SHOWN])
            why.append(f"{len(self.unreadable)} logs cannot be read (the first: {first})")
        if self.skipped:
            why.append(f"windows passed over: {self.passed_over}")
        if self.not_found:
            why.append(
                f"{len(self.not_found)} tokens of the filter are in no window that could be made, e.g. "
                f"{', '.join(self.not_found[:_SHOWN])}"
            )
        why += self.notes
        raise ConfigError(
            "no scenes to plan: "
            + ("; ".join(why) or "no log is wanted, or those that are hold no frame")
            + ". Look at source.root, source.split and source.filter"
        )


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


@runtime_checkable
class LookingSource(Source, Protocol):
    """A source that knows, before any work, what its scenes can have and which images are there."""

    @property
    def num_before(self) -> int:
        """Frames before a window that a scene may have besides (`Scene.before`)."""

    @property
    def rate(self) -> int:
        """Frames a second."""

    @property
    def channels(self) -> frozenset[str]:
        """The cameras that a frame may have."""

    @property
    def blobs(self) -> str:
        """The folder or URL that images lie under."""

    def look(self, wanted: Wanted, *, processes: int = 1) -> Scan:
        """`scan`, and in the same pass which images there are, by listing each folder once: see `Scan.missing`.

        Raises:
            ConfigError: as `scan`.
            StoreError: a folder could not be listed, which is not the same as that it is not there.
        """


def missing(refs: Iterable[SceneRef], wanted: Wanted, has: Callable[[SceneRef, int, str], bool]) -> Missing:
    """What the scenes of a log lack of what columns want.

    Args:
        refs: the scenes.
        wanted: see `Wanted`.
        has: whether a scene has the image of a step and a channel.
    """
    out: dict[str, dict[str, tuple[tuple[int, str], ...]]] = {}
    shared: dict[tuple[tuple[int, str], ...], tuple[tuple[int, str], ...]] = {}
    images = sorted(frozenset().union(*wanted.values()))
    for ref in refs:
        gone = [image for image in images if not has(ref, *image)]
        if not gone:
            continue
        for column, asked in wanted.items():
            if lost := tuple(image for image in gone if image in asked):
                out.setdefault(column, {})[ref.token] = shared.setdefault(lost, lost)
    return out
