"""The synthetic world in nuPlan's layout, beside its NAVSIM tree and on the same images.

    <root>/nuplan-v1.1/splits/<split>/<log>.db
    <root>/nuplan-v1.1/sensor_blobs/<log>             a link to <root>/sensor_blobs/<split>/<log>
    <root>/nuplan-v1.1/SYNTHETIC.json                 written last; how a finished dataset is known

A `NuplanSource` whose `sensor_root` is ``<root>/sensor_blobs/<split>`` names the very files that a `NavsimSource` does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline.stores.disk import write_json
from pipeline.stores.lease import hold
from pipeline.stores.volume import Volume
from shards_schema.errors import ConfigError, MismatchError
from shards_schema.inputs import documents
from shards_schema.records import CHANNELS
from synthetic import MARKER, NOTICE, SyntheticConfig, each, generate, log_specs
from synthetic.logs import LogSpec
from synthetic.nuplan_logs import write_nuplan_log

FOLDER = "nuplan-v1.1"
REVISION = 1
"""Raised whenever equal configs would give other ``.db`` files than before."""


def generate_nuplan(
    config: SyntheticConfig,
    root: Path,
    between: Sequence[str] = CHANNELS,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make the NAVSIM dataset of `config` at `root`, and its nuPlan logs; what is there already is left alone.

    Args:
        config: what to make.
        root: see `generate`.
        between: the cameras with images at 10 Hz (the others have them at 2 Hz).
        progress: gets a line for a person whenever something is done.

    Returns:
        The folder that is the `root` of a `NuplanSource`.

    Raises:
        ConfigError: a camera that there is not.
        MismatchError: the folder holds something else.
        HeldError: another command is making a dataset there.
    """
    if unknown := [channel for channel in between if channel not in CHANNELS]:
        raise ConfigError(f"images at 10 Hz: no cameras {', '.join(unknown)}; there are {', '.join(CHANNELS)}")
    generate(config, root, progress)
    nuplan = root / FOLDER
    identity = {**config.identity(), "nuplan": REVISION, "between": sorted(between)}
    if (nuplan / MARKER).exists():  # and perhaps on a disk that nobody writes to
        if (found := documents.parse_json((nuplan / MARKER).read_bytes())["config"]) != identity:
            raise MismatchError(f"{nuplan} holds nuPlan logs of another config: {found}. Remove that folder yourself.")
        progress(f"{nuplan}: complete, nothing to do")
        return nuplan
    with hold(Volume(str(root))):
        shutil.rmtree(nuplan, ignore_errors=True)  # of a run that did not end
        for spec in each(log_specs(config), partial(_make, config, root=root, between=between), config.processes):
            progress(f"{FOLDER}/{spec.split}/{spec.name}.db")
        write_json(nuplan / MARKER, {"synthetic": True, "notice": NOTICE, "config": identity})
    return nuplan


def _make(config: SyntheticConfig, spec: LogSpec, root: Path, between: Sequence[str]) -> None:
    link = root / FOLDER / "sensor_blobs" / spec.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(Path("..", "..", "sensor_blobs", spec.split, spec.name), target_is_directory=True)
    blobs = root / "sensor_blobs" / spec.split
    write_nuplan_log(config, spec, blobs, root / FOLDER / "splits" / spec.split / f"{spec.name}.db", between)
