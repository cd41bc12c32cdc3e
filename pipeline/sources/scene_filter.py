"""Which windows of which logs are scenes: NAVSIM's scene filter, read from the devkit's own YAML files as they are.

`SceneFilter.load` takes an inline mapping, a ``scene_filter/<name>.yaml``, or a ``train_test_split/<name>.yaml``,
which names a scene filter beside it (``scene_filter/<name>.yaml``) and the folder of the logs (``data_split``).
Fields, defaults and limits are those of the devkit's `SceneFilter`. What a two-stage split says
of synthetic scenes is kept, for those who aggregate; no source here reads such scenes (`NavsimSource` counts them).

Unknown keys are refused, also in the YAML files: a misspelt ``frame_intervall`` would change the dataset in silence.
YAML aliases are refused: no such file has them, and they are how YAML bombs are made
(`shards_schema.inputs.documents`). The C loader reads navtrain's 103,288 tokens in 0.6 s, where PyYAML's own takes 2.8
s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationError

from shards_schema.errors import ConfigError
from shards_schema.inputs import documents
from shards_schema.inputs.models import StrictModel
from shards_schema.inputs.refusals import problems

_HYDRA_KEYS = {"_target_", "_convert_"}
"""How Hydra builds the devkit's class; says nothing of the filter."""


class SceneFilter(StrictModel):
    """The devkit's filter."""

    num_history_frames: int = Field(4, ge=1)
    """H, which counts the current frame."""
    num_future_frames: int = Field(10, ge=0)
    """F."""
    frame_interval: Annotated[int, Field(ge=1)] | None = None
    """Frames from one window's start to the next; None means H + F, windows that do not overlap."""
    has_route: bool = True
    """Pass over windows whose current frame has no roadblock ids."""
    max_scenes: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many (in the order of sorted log names)."""
    log_names: tuple[str, ...] | None = None
    """Only these logs; None means all."""
    tokens: tuple[str, ...] | None = None
    """Only windows with these current frames; None means all."""
    include_synthetic_scenes: bool = False
    """Whether a second stage of synthetic scenes belongs to the split."""
    all_mapping: Any = None
    """First-stage to second-stage tokens, as the split has them."""
    reactive_all_mapping: Any = None
    """The same, of the reactive second stage."""
    two_stage_mapping: Any = None
    """The same, in the older form."""
    synthetic_scene_tokens: tuple[str, ...] | None = None
    """The second stage."""
    reactive_synthetic_initial_tokens: tuple[str, ...] | None = None
    """The second stage."""
    non_reactive_synthetic_initial_tokens: tuple[str, ...] | None = None
    """The second stage."""
    data_split: str | None = None
    """The folder of logs that a train_test_split file names; None where there was no such file."""
    _name: str | None = PrivateAttr(default=None)

    @property
    def name(self) -> str | None:
        """The stem of its YAML file, which names a two-stage split's folder; no part of the filter."""
        return self._name

    @property
    def num_frames(self) -> int:
        """H + F, the frames of a window."""
        return self.num_history_frames + self.num_future_frames

    @property
    def stride(self) -> int:
        """Frames from one window's start to the next."""
        return self.frame_interval or self.num_frames

    @property
    def second_stage(self) -> frozenset[str]:
        """The tokens of the synthetic scenes that the filter lists, if it wants any."""
        lists = (
            self.synthetic_scene_tokens,
            self.reactive_synthetic_initial_tokens,
            self.non_reactive_synthetic_initial_tokens,
        )
        return frozenset(t for tokens in lists for t in tokens or ()) if self.include_synthetic_scenes else frozenset()

    @classmethod
    def load(cls, value: Mapping[str, Any] | str | Path) -> SceneFilter:
        """The filter in a mapping, or in one of the devkit's YAML files.

        Raises:
            ConfigError: no such file, not YAML, a key that is not known, or a value that is impossible.
        """
        if isinstance(value, Mapping):
            return cls._build(value, "the filter")
        path = Path(value).expanduser()
        made = cls._loaded(path)
        made._name = path.stem
        return made

    @classmethod
    def _loaded(cls, path: Path) -> SceneFilter:
        found = _read(path)
        if "defaults" not in found:
            return cls._build(found, str(path))
        beside = path.parent / "scene_filter" / f"{_scene_filter_name(found['defaults'], path)}.yaml"
        split = {key: item for key, item in found.items() if key != "defaults"}
        inner = _read(beside)
        if twice := sorted(split.keys() & inner.keys()):
            raise ConfigError(f"{path} and {beside} both set {', '.join(twice)}: keep one")
        return cls._build({**inner, **split}, f"{path} with {beside}")

    @classmethod
    def _build(cls, fields: Mapping[str, Any], where: str) -> SceneFilter:
        try:
            return cls.model_validate({key: item for key, item in fields.items() if key not in _HYDRA_KEYS})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            hint = ""
            if first["type"] == "string_type" and isinstance(first["input"], int | float):
                hint = " (put quotes around it)"
            (line,) = problems([first], cls)
            raise ConfigError(f"{where}: {line}{hint} ({error.error_count()} in all)") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = documents.parse_yaml(documents.read(path, documents.YAML_BYTES))
    except OSError as error:
        raise ConfigError(
            f"cannot read the scene filter {path}: {error.strerror}. Give a YAML file of the devkit's train_test_split "
            "folder, or the fields themselves"
        ) from None
    except documents.UnreadableError as error:
        raise ConfigError(f"the scene filter {path} cannot be used: it {error}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"the scene filter {path}: expected a mapping of fields, got {found!r:.80}")
    return found


def _scene_filter_name(defaults: Any, path: Path) -> str:
    match defaults:
        case [{"scene_filter": str(name)}] if name and Path(name).name == name:
            return name
    raise ConfigError(f"{path}: expected defaults: [scene_filter: NAME], got {defaults!r:.120}")
