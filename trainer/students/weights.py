"""A pretrained model whose weights stay on the disk until somebody asks for one: for ranks that take a part of each.

Only its buffers are in memory (those that its constructor computes are in no file). A weight is mapped when it is asked
for, by the name of the model's parameter, so that who takes rows of it reads these rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from shards_schema.errors import WeightsError
from shards_schema.inputs import reach


@contextmanager
def fetching(model: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """Options of `from_pretrained`, whose errors of fetching are told in a sentence in place of a page.

    Raises:
        WeightsError: there is no such folder or repository, or the hub could not be asked.
    """
    where = f"student.model {model}" + (f"@{revision}" if revision else "")
    if (local := Path(model).expanduser()).is_absolute() and not local.is_dir():
        raise WeightsError(f"{where}: no such folder")
    silent = None if local.is_dir() else reach.silence_of_hub()
    try:
        yield {"revision": revision, "local_files_only": silent is not None}
    except (OSError, ValueError) as error:
        if silent is not None:
            raise WeightsError(f"{where}: {silent}, and {reach.in_cache(model)}") from error
        told = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{where} cannot be loaded: {told:.300}") from error


class Weights:
    """The safetensors of a pretrained model.

    Args:
        model: of transformers, as its class makes it.
        name: a folder, or a repository of the hub.
        options: of `from_pretrained`: revision, and whether the hub is asked.

    Raises:
        ValueError: a parameter is in no file, or is made of several.
    """

    def __init__(self, model: Any, name: str, options: Mapping[str, Any]) -> None:
        from safetensors import safe_open
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        changes = get_model_conversion_mapping(model)
        renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        converters: Any = [change for change in changes if not isinstance(change, WeightRenaming)]
        there = model.state_dict()
        self._places: dict[str, tuple[str, str]] = {}
        for file in _files(name, options):
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (no mapping)
                    own, joined = rename_source_key(key, renamings, converters, model.base_model_prefix, there)
                    if own in there and joined is None:
                        self._places[own] = file, key
        missing = [own for own, _ in model.named_parameters() if own not in self._places]
        if missing:
            raise ValueError(f"its safetensors have no {missing[0]} ({len(missing)} missing)")

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        file, key = self._places[name]
        with safe_open(file, "pt") as opened:
            found: Tensor = opened.get_tensor(key)
        return found


def _files(name: str, options: Mapping[str, Any]) -> list[str]:
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **options)
    if index is None:
        return [str(cached_file(name, SAFE_WEIGHTS_NAME, **options))]
    files: list[str] = get_checkpoint_shard_files(name, index, **options)[0]  # type: ignore[no-untyped-call]
    return files


def fetched(name: str, dtype: torch.dtype, options: Mapping[str, Any], *, unread: bool) -> tuple[Any, Weights | None]:
    """A model in eval mode.

    Args:
        name: a folder, or a repository of the hub.
        dtype: of the parameters.
        options: of `from_pretrained`.
        unread: whether its parameters stay on the meta device; their weights are given beside it.
    """
    if unread:
        model = bare(name, dtype, options)
        return model, Weights(model, name, options)
    from transformers import AutoModelForImageTextToText

    models: Any = AutoModelForImageTextToText
    return models.from_pretrained(name, dtype=dtype, attn_implementation="sdpa", **options), None


def bare(name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
    """A model in eval mode of a config alone: parameters on the meta device, and buffers, which are computed."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    models: Any = AutoModelForImageTextToText
    config = AutoConfig.from_pretrained(name, **options)
    with torch.random.fork_rng(devices=[]), _parameters_on_meta():
        model = models.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Each parameter goes to the meta device when a module takes it, before it is filled; buffers stay."""

    def moved(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # one that is shared stays one
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()
