"""What a measurement of `reports.signal` says: a table for the terminal, sentences, and a page."""

from __future__ import annotations

from collections.abc import Sequence

from reports import pages
from reports.signal.labels import MEANINGS
from reports.signal.measure import LEAST, NOW, RANDOM, Signal, Target, Told, something
from reports.tables import table


def text(signal: Signal) -> str:
    """The table, and what follows from it."""
    head, rows = grid(signal)
    lines = [table(head, rows), "", *about(signal), ""]
    lines += [f"- {sentence}" for target in signal.targets for sentence in sentences(target)]
    lines += [f"- {name}: {why}" for name, why in signal.absent.items()]
    return "\n".join(lines)


def grid(signal: Signal) -> tuple[list[str], list[list[str]]]:
    """A row a label: how many scenes tell it, R2 of ego status, and of each target R2 and what it adds to status."""
    rows = []
    for name in [n for n in MEANINGS if n not in signal.absent]:
        told = [target.told[name] for target in signal.targets]
        rows.append([name, f"{told[0].scenes:,}", f"{told[0].status:.2f}", *map(_cell, told)])
    return ["R2, held-out logs", "scenes", "status", *(t.name for t in signal.targets)], rows


def _cell(told: Told) -> str:
    added = "" if told.adds is None else f" {told.adds.middle:+.2f}{'*' if told.pays else ' '}"
    return f"{told.alone.middle:.2f}{added or ' ' * 7}"


def about(signal: Signal) -> list[str]:
    """What the numbers are."""
    told = [t for target in signal.targets for t in target.told.values()]
    chance = max((t.shuffled for t in told), default=0.0), max((t.shuffled_adds for t in told), default=0.0)
    some = "" if signal.scenes == signal.written else f", spread over the {signal.written:,} that all columns have"
    return [
        f"{signal.scenes:,} scenes of {signal.logs} logs{some}; each log is judged by ridge probes that have not seen "
        f"it ({signal.folds} parts). The training mean has R2 0.",
        "Of each target: R2 alone, and what it adds to the R2 of ego status; * is at least "
        f"{LEAST}, more than 0 by its 95 % interval over logs, and more than features of other scenes add.",
        f"Features of other scenes: R2 at most {chance[0]:.3f}, and {chance[1]:.3f} added. One in forty * is chance.",
    ]


def sentences(target: Target) -> list[str]:
    """What is to be said of a target."""
    asked = {name: told for name, told in target.told.items() if told.adds is not None}
    pays = {name: told for name, told in asked.items() if told.pays}
    out = []
    if pays:
        added = ", ".join(f"{name} ({told.adds.middle:+.2f})" for name, told in pays.items() if told.adds is not None)
        rest = [name for name in asked if name not in pays]
        out.append(f"{target.name} adds over status for {added}{'; nothing for ' * bool(rest)}{', '.join(rest)}.")
    elif asked:
        out.append(f"{target.name} adds nothing over status for {', '.join(asked)}. {cause(target)}")
    for why, other in target.against.items():
        over = {name: told.over[why] for name, told in target.told.items() if why in told.over}
        better = ", ".join(f"{name} ({found.middle:+.2f})" for name, found in over.items() if something(found))
        yes, no = _AGAINST[why]
        out.append(f"{target.name} {(yes if better else no).format(other=other, better=better)}.")
    out += [f"{target.name}, {c.kind}: LOOK HERE: {c.text}." for c in target.checks if c.verdict == "bad"]
    return out


_AGAINST = {
    RANDOM: (
        "is better than random weights ({other}) for {better}",
        "is no better than random weights ({other}) for anything: the weights were perhaps not loaded",
    ),
    NOW: (
        "gains more over frames of now ({other}) in {better} than in their like of now",
        "gains no more over frames of now ({other}) in what comes later than in what is now: too few logs to tell, or "
        "not the frames that its window names",
    ),
}


def cause(target: Target) -> str:
    """What usually makes a target add nothing."""
    if target.random_weights:
        return "Its column was made with random weights."
    if not any(told.knows for told in target.told.values()):
        return (
            "It knows nothing of its scenes at all. Usual causes: targets of other scenes or times, weights that were "
            "not loaded, images that are not as the network wants them (size, scale, order of colours), too few logs."
        )
    return (
        "It knows something of its scenes, but nothing that status does not say. Usual causes: another checkpoint or "
        "layer than was meant, views in another order, too few or too like logs."
    )


def page(signal: Signal) -> str:
    """The page."""
    head, rows = grid(signal)
    return pages.render(
        "signal/signal.html",
        title=f"Signal of {signal.url}",
        signal=signal,
        head=head,
        rows=rows,
        about=about(signal),
        said={target.name: sentences(target) for target in signal.targets},
        details={target.name: [_detail(name, told) for name, told in target.told.items()] for target in signal.targets},
        meanings={name: MEANINGS[name] for name in MEANINGS if name not in signal.absent},
    )


def _detail(name: str, told: Told) -> Sequence[str]:
    return [
        name,
        f"{told.scenes:,}",
        told.alone.text(digits=3),
        f"{told.shuffled:+.3f}",
        f"{told.status:+.3f}",
        "stands in status" if told.adds is None else told.adds.text(digits=3),
        f"{told.shuffled_adds:+.3f}",
        *(told.over[why].text(digits=3) if why in told.over else "-" for why in (RANDOM, NOW)),
        "adds" if told.pays else "knows" if told.knows else "",
    ]
