"""What the scenes of a dataset have of what its columns ask for: known before the first shard is begun.

    refuse_impossible   from the config alone: steps, cameras and rates that no scene of the source can have
    look                one pass over logs and folders: which scenes have the images that columns ask for
    refuse_short        columns, logs or tokens of which more is missing than `max_quarantined` allows
    only_covered        the scan with only the scenes that some columns have in full (``plan.require``)

What is found by existence is a bound: an image that is there may be damaged, and a scene be refused for its records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.sources import unmerged
from pipeline.sources.base import LookingSource, Scan, Source
from pipeline.writing.samples import SamplesConfig
from shards_schema import layout
from shards_schema.errors import ConfigError, IncompleteError
from teachers.base import Needs, Teacher, needs_of

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many scenes have what a column asks for.

    Attributes:
        column: its name.
        scenes: of the plan.
        covered: of them, those with every image; None where the teacher does not say, or the source.
        lacking: the images that are missing, in words; "" for none.
    """

    column: str
    scenes: int
    covered: int | None
    lacking: str = ""


def column_needs(samples: SamplesConfig, teachers: Sequence[Teacher]) -> dict[str, Needs | None]:
    """Column -> what it asks every scene for; None where the teacher does not say."""
    keys = "samples.views and samples.history" if samples.history else "samples.views"
    return {
        layout.SAMPLES: Needs.of([*samples.images.values()], f"set {keys}"),
        **{teacher.name: needs_of(teacher) for teacher in teachers},
    }


def refuse_impossible(source: Source, needs: Mapping[str, Needs | None]) -> None:
    """Refuse columns that no scene of the source can have, by the config of both.

    Raises:
        ConfigError: each such column, what it wants, what scenes have, and what to set.
    """
    looking = source if isinstance(source, LookingSource) else None
    before = "" if looking is None else f", and at most {looking.num_before} before those (source.context_frames)"
    window = f"{1 - source.num_history:+d} .. {source.num_future:+d}{before}"
    faults = []
    for column, wanted in needs.items():
        if wanted is None:
            continue
        rather = f"{wanted.rather}, or " if wanted.rather else ""
        first = None if looking is None else 1 - source.num_history - looking.num_before
        steps = f"it asks for frames {wanted.first:+d} .. {wanted.last:+d} from now, and scenes have {window}"
        if wanted.last > source.num_future:
            faults.append(f"{column}: {steps}: {rather}give a filter with num_future_frames: {wanted.last}")
        if first is not None and wanted.first < first:
            more = -wanted.first - source.num_history + 1
            faults.append(f"{column}: {steps}: {rather}source.context_frames={more}")
        if looking is not None and wanted.rate not in (None, looking.rate):
            faults.append(f"{column}: it is for {wanted.rate} frames a second, and the source gives {looking.rate}")
        channels = {image.channel for image in wanted.images}
        if looking is not None and (strange := sorted(channels - looking.channels)):
            faults.append(f"{column}: it asks for {', '.join(strange)}, and the source has {sorted(looking.channels)}")
    if faults:
        raise ConfigError("no scene can have what these columns ask for:\n  " + "\n  ".join(faults))


def look(source: Source, needs: Mapping[str, Needs | None], *, processes: int = 1) -> Scan:
    """The scan of a source, with what is missing of the images that columns ask for, where the source can tell.

    Raises:
        ConfigError: as `Source.scan`.
        StoreError: a folder could not be listed.
    """
    if not isinstance(source, LookingSource):
        return source.scan(processes=processes)
    wanted = {
        column: frozenset((image.step, image.channel) for image in need.images)
        for column, need in needs.items()
        if need is not None and need.images
    }
    return source.look(wanted, processes=processes)


def coverage(source: Source, scan: Scan, needs: Mapping[str, Needs | None]) -> list[Coverage]:
    """What each column has, in the order of `needs`."""
    looking, scenes = isinstance(source, LookingSource), len(scan.refs)
    out = []
    for column, need in needs.items():
        lost = scan.missing.get(column)
        if need is None or (need.images and not looking):
            out.append(Coverage(column, scenes, None))
        elif lost is None:
            out.append(Coverage(column, scenes, scenes))
        else:
            out.append(Coverage(column, scenes, scenes - len(lost), lacking(lost)))
    return out


def lacking(scenes: Mapping[str, Sequence[tuple[int, str]]]) -> str:
    """The images that scenes lack, in words: by camera; history, now and future apart, how many scenes at most."""
    images = Counter(image for lost in scenes.values() for image in lost)
    parts = []
    for channel in dict.fromkeys(channel for _, channel in sorted(images)):
        for name, side in (("history", -1), ("now", 0), ("future", 1)):
            steps = sorted(s for s, c in images if c == channel and (s > 0) - (s < 0) == side)
            if steps:
                most = max(images[step, channel] for step in steps)
                span = "" if not side else f", step {steps[0]:+d}" + (f" .. {steps[-1]:+d}" if len(steps) > 1 else "")
                parts.append(f"{channel} of {name}{span} ({most} scenes)")
    return "; ".join(parts)


def only_covered(
    source: Source, scan: Scan, needs: Mapping[str, Needs | None], require: Sequence[str], planned: Collection[str] = ()
) -> Scan:
    """The scan with only the scenes that have all that the columns of `require` ask for; the others are counted.

    Args:
        source: of the scan.
        scan: of `look`.
        needs: of `column_needs`.
        require: columns.
        planned: tokens that are planned already, and stay.

    Raises:
        ConfigError: a column that is not in the config, or of which it is not known what it has; or no scene is left.
    """
    if not require:
        return scan
    if unknown := sorted(set(require) - needs.keys()):
        raise ConfigError(f"plan.require: no column {', '.join(unknown)} in this config; it has {', '.join(needs)}")
    found = {c.column: c for c in coverage(source, scan, needs)}
    if unsaid := [column for column in require if found[column].covered is None]:
        raise ConfigError(f"plan.require: {', '.join(unsaid)} does not say, or the source does not, what scenes have")
    lost = {token for column in require for token in scan.missing.get(column, ())} - set(planned)
    refs = tuple(ref for ref in scan.refs if ref.token not in lost)
    if not refs:
        told = "; ".join(f"{column} lacks {found[column].lacking}" for column in require if found[column].lacking)
        raise ConfigError(f"plan.require={list(require)} leaves no scene: {told}{unmerged.hint(source)}")
    skipped = {**scan.skipped, **({"not_covered": len(scan.refs) - len(refs)} if len(refs) < len(scan.refs) else {})}
    left = {c: {t: i for t, i in scenes.items() if t not in lost} for c, scenes in scan.missing.items()}
    return replace(scan, refs=refs, skipped=skipped, missing=left)


def refuse_short(
    source: Source, scan: Scan, needs: Mapping[str, Needs | None], columns: Collection[str], most: float
) -> None:
    """Refuse to begin what is sure to end with more left out than `most`, a share.

    Args:
        source: of the scan.
        scan: what is planned.
        needs: of `column_needs`.
        columns: those that are still to be made.
        most: ``max_quarantined``.

    Raises:
        IncompleteError: a column, the logs or the tokens; with the numbers, and the ways out.
    """
    if not scan.refs:
        return  # which is refused where the plan is made, with the reasons
    faults = [_short_logs(scan, most), _short_tokens(scan, most)]
    short = [
        c
        for c in coverage(source, scan, needs)
        if c.column in columns and c.covered is not None and c.scenes - c.covered > most * c.scenes
    ]
    for one in short:
        need = needs[one.column]
        ways = [f"another config of {one.column}" + (f" ({need.rather})" if need is not None and need.rather else "")]
        if one.covered:
            ways.append(f"plan.require=[{one.column}], which plans the {one.covered} scenes that have everything")
            ways.append(f"max_quarantined={_share_above(one):g}")
        faults.append(
            f"{one.column}: {one.covered} of {one.scenes} scenes have every image that it asks for "
            f"({(one.covered or 0) / one.scenes:.1%}); not there: {one.lacking}. Ways out: {'; '.join(ways)}"
        )
    if told := [fault for fault in faults if fault]:
        raise IncompleteError(
            f"nothing is begun, since more would be left out than max_quarantined ({most:.2%}) allows:\n  "
            + "\n  ".join(told)
            + (unmerged.hint(source) if short else "")
        )


def _share_above(one: Coverage) -> float:
    """The smallest ``max_quarantined`` of two digits that lets a column be."""
    hundredths = -(-100 * (one.scenes - (one.covered or 0)) // one.scenes)
    return hundredths / 100


def _short_logs(scan: Scan, most: float) -> str:
    logs = scan.logs or len({ref.log for ref in scan.refs} | scan.unreadable.keys())
    if len(scan.unreadable) <= most * logs:
        return ""
    first = "; ".join(f"{log}: {reason}" for log, reason in list(scan.unreadable.items())[:_SHOWN])
    return (
        f"{len(scan.unreadable)} of {logs} logs are not there or unreadable (the first: {first}). Ways out: the logs; "
        "a filter that names only those that are there (filter.log_names); max_quarantined="
        f"{-(-100 * len(scan.unreadable) // logs) / 100:g}"
    )


def _short_tokens(scan: Scan, most: float) -> str:
    asked = len(scan.refs) + len(scan.not_found)
    if len(scan.not_found) <= most * len(scan.refs):
        return ""
    return (
        f"{len(scan.not_found)} of {asked} tokens of the filter are in no log "
        f"(e.g. {', '.join(scan.not_found[:_SHOWN])}). Ways out: the logs that hold them; another filter; "
        f"max_quarantined={-(-100 * len(scan.not_found) // len(scan.refs)) / 100:g}"
    )
