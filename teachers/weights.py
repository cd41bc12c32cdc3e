"""Where a teacher's weights come from, and how they are named in the records.

Exactly one of four: `random` (a seed; outputs are marked as worthless for training everywhere), `town` (the small ones
that ship with the project, and know the generated town), `hub` (a Hugging Face repository at a pinned revision), `path`
(a local file, or a local directory in the hub's layout). The digest of the file's bytes is part of the teacher's
fingerprint, so the same weights by hub or by path are the same teacher.
"""

from __future__ import annotations

import functools
import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from shards_schema.errors import WeightsError
from shards_schema.inputs import reach
from shards_schema.inputs.models import StrictModel

_BLOB = re.compile(r".*/models--[^/]+/blobs/([0-9a-f]{64})")
"""Where the hub's cache keeps a large file: under the sha256 that the hub names it by. (Small ones bear git's sha1.)"""

_COMMIT = re.compile(r"[0-9a-f]{40}")

TOWN = Path(__file__).with_name("town")
"""The folder of the weights that ship with the project; see its ``__init__``."""


class WeightsConfig(StrictModel):
    """Where the weights come from."""

    random: int | None = None
    """Seed of randomly initialised weights."""
    town: Literal[True] | None = None
    """Those that ship with the project: small networks trained on the generated town, for it alone."""
    hub: str | None = None
    """Repository id on the Hugging Face hub, e.g. ``facebook/VGGT-1B``."""
    revision: str | None = None
    """Commit of the repository; asked for with `hub`, so that a run can be repeated. What a branch or a tag stands for
    is looked up when a run begins, and `column.json` tells the commit."""
    path: str | None = None
    """A local file, or a directory with the file in it."""
    file: str | None = None
    """The file in the repository or directory, where the teacher's default is not the one."""

    @model_validator(mode="after")
    def _one_origin(self) -> WeightsConfig:
        given = [name for name in ("random", "town", "hub", "path") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"weights: give exactly one of random, town, hub, path; got {given or 'none'}")
        if self.hub is not None and self.revision is None:
            raise ValueError(f"weights: hub {self.hub!r} needs a revision (a commit), so that the run can be repeated")
        return self

    def locate(self, *candidates: str) -> Path:
        """The local path of the weights file, downloaded if need be.

        Args:
            candidates: file names to try in order, relative to the repository or directory, where `file` is not set.

        Raises:
            WeightsError: none of them is there, or weights are random.
        """
        if self.random is not None:
            raise WeightsError("random weights have no file")
        names = (self.file,) if self.file is not None else candidates
        if self.hub is None:
            root = TOWN if self.path is None else Path(self.path).expanduser()
            if root.is_file():
                return root
            for name in names:
                if (root / name).is_file():
                    return root / name
            raise WeightsError(f"no weights at {root}: expected the file itself, or a directory with {_any(names)}")
        return self._download(names)

    def _download(self, names: tuple[str, ...]) -> Path:
        """One of the files, of the cache where it is there, else of the hub: that it has none is for the hub to say."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

        assert self.hub is not None
        where = f"{self.hub}@{self.revision}"
        if (silent := reach.silence_of_hub()) is not None:
            for name in names:
                with suppress(LocalEntryNotFoundError):
                    return Path(hf_hub_download(self.hub, name, revision=self.revision, local_files_only=True))
            raise WeightsError(
                f"{where}: nobody knows whether it has {_any(names)}: {silent}, and {reach.in_cache(self.hub)}"
            )
        for name in names:
            try:
                return Path(hf_hub_download(self.hub, name, revision=self.revision))
            except LocalEntryNotFoundError as error:  # an `EntryNotFoundError` of one that was not asked
                why = error.__cause__ or error
                raise WeightsError(f"{where}: the hub could not be asked for {name}: {_first_line(why)}") from error
            except EntryNotFoundError:
                continue
            except GatedRepoError as error:
                raise WeightsError(
                    f"{where} is gated: accept its licence on its page, and give the token of who did (HF_TOKEN)"
                ) from error
            except Exception as error:
                raise WeightsError(f"cannot fetch {name} of {where}: {_first_line(error)}") from error
        raise WeightsError(f"{where} has none of {_any(names)}")

    def provenance(self, *candidates: str) -> dict[str, Any]:
        """JSON for the records: the seed, or the file's name and sha256, which outranks hub and revision."""
        if self.random is not None:
            return {"random": True, "seed": self.random}
        path = self.locate(*candidates)
        town = {} if self.town is None else {"town": True}
        return {"random": False, **town, "file": path.name, "sha256": file_digest(path)}


def is_commit(revision: str) -> bool:
    """Whether it names one state of a repository for good: 40 hexadecimal digits."""
    return _COMMIT.fullmatch(revision) is not None


def commit_of(hub: str, revision: str) -> str:
    """The commit that a revision stood for when a file of it was last fetched; the revision where nobody knows."""
    from huggingface_hub import constants

    if is_commit(revision):
        return revision
    known = Path(constants.HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}" / "refs" / revision
    try:
        commit = known.read_text().strip()
    except OSError:
        return revision
    return commit if is_commit(commit) else revision


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal.

    A large file in the hub's cache is not read: its name is the digest that the hub gave. Any other is read, 0.8 s a GB
    where it is in memory, and remembered while its size and times stay: in this process, no longer.

    Raises:
        OSError: the file cannot be read.
    """
    resolved = path.resolve(strict=True)
    if blob := _BLOB.fullmatch(resolved.as_posix()):
        return blob[1]
    found = resolved.stat()
    return _read(resolved, found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=64)
def _read(path: Path, *state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _any(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
