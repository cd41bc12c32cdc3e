"""Where a teacher's weights come from, and how they are named in the records.

Exactly one of three: `random` (a seed; outputs are marked as worthless for training everywhere), `hub` (a Hugging Face
repository at a pinned revision), `path` (a local file, or a local directory in the hub's layout). The digest of the
file's bytes is part of the teacher's fingerprint, so the same weights by hub or by path are the same teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from shards_schema.errors import WeightsError
from teachers.digests import file_digest as file_digest  # and for those who ask here for it


class WeightsConfig(BaseModel):
    """Where the weights come from.

    Attributes:
        random: seed of randomly initialised weights.
        hub: repository id on the Hugging Face hub, e.g. ``facebook/VGGT-1B``.
        revision: commit of the repository; asked for with `hub`, so that a run can be repeated.
        path: a local file, or a directory with the file in it.
        file: the file in the repository or directory, where the teacher's default is not the one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    random: int | None = None
    hub: str | None = None
    revision: str | None = None
    path: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> WeightsConfig:
        given = [name for name in ("random", "hub", "path") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"weights: give exactly one of random, hub, path; got {given or 'none'}")
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
        if self.path is not None:
            root = Path(self.path).expanduser()
            if root.is_file():
                return root
            for name in names:
                if (root / name).is_file():
                    return root / name
            raise WeightsError(f"no weights at {root}: expected the file itself, or a directory with one of {names}")
        return self._download(names)

    def _download(self, names: tuple[str, ...]) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        assert self.hub is not None
        for name in names:
            try:
                return Path(hf_hub_download(self.hub, name, revision=self.revision))
            except EntryNotFoundError:
                continue
            except Exception as error:
                raise WeightsError(f"cannot fetch {name} of {self.hub}@{self.revision}: {error}") from error
        raise WeightsError(f"{self.hub}@{self.revision} has none of {names}")

    def provenance(self, *candidates: str) -> dict[str, Any]:
        """JSON for the records: the seed, or the file's name and sha256, which outranks hub and revision."""
        if self.random is not None:
            return {"random": True, "seed": self.random}
        path = self.locate(*candidates)
        return {"random": False, "file": path.name, "sha256": file_digest(path)}
