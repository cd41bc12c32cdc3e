"""For ms-swift's ``--external_plugins``: the reward ``pdms``, and SFT that aligns hidden states with latents.

    swift rlhf --rlhf_type grpo --external_plugins trainer/plugins/ms_swift.py --reward_funcs pdms ...
    swift sft --external_plugins trainer/plugins/ms_swift.py --remove_unused_columns false ...

Environment: ``LAST_SHARDS_DATA`` is the dataset; for the reward see `trainer.reward_functions`. SFT is ms-swift's own
unless ``LAST_SHARDS_LATENTS=column/target,...`` is set. Then the mean of the last hidden states over the prompt, put
through an adapter for each target, is brought near the target's mean over all axes but its channels, standardised with
the column's statistics. The loss is 1 - cosine + smooth L1, times ``LAST_SHARDS_WEIGHT`` (0.1). It is a mean over the
batch, so the cross-entropy is one as well (``model_accepts_loss_kwargs = False``). docs/streaming.md shows it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from swift.rewards import orms
from swift.trainers import Seq2SeqTrainer, TrainerFactory
from torch import Tensor, nn

from pipeline.reading.reader import Dataset
from pipeline.stream import LatentCollator
from shards_schema.errors import ConfigError, DatasetError
from trainer.latents import Adapter, Statistics
from trainer.losses import alignment
from trainer.question_rewards import SwiftQuestionReward
from trainer.reward_functions import DATA, SwiftReward

LATENTS, WEIGHT = "LAST_SHARDS_LATENTS", "LAST_SHARDS_WEIGHT"


class LatentTrainer(Seq2SeqTrainer):  # type: ignore[misc]
    """See the module.

    Raises:
        ConfigError: the environment names no dataset, or a target without channels; packed sequences.
        AbsentError: the dataset has no such column, target or statistics.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._latents = Latents.from_environment()
        super().__init__(*args, **kwargs)
        if self.template.packing or self.template.padding_free:
            raise ConfigError(
                "latents: a packed sequence has several samples in a row; leave out packing, padding_free"
            )
        self.model_accepts_loss_kwargs = False
        config = self.model.config
        self.model.last_shards = self._latents.adapters(getattr(config, "text_config", config).hidden_size)
        self.model.last_shards.to(self.args.device)

    def _get_data_collator(self, args: Any, template: Any) -> Callable[[list[dict[str, Any]]], Any]:
        return self._latents.collator(super()._get_data_collator(args, template))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """ms-swift's own loss, and the alignment."""
        latents, prompt_BL = inputs.pop("latents"), inputs.pop("prompt_mask")
        inputs["output_hidden_states"] = True
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        adapters = self.accelerator.unwrap_model(model).last_shards
        losses = self._latents.losses(outputs.hidden_states[-1], prompt_BL, latents, adapters)
        mode = "train" if model.training else "eval"
        for name, value in losses.items():
            self.custom_metrics[mode][f"align_{name}"].update(value.detach())
        loss = loss + self._latents.weight * sum(losses.values())
        return (loss, outputs) if return_outputs else loss


class Latents:
    """Which targets, and how hidden states are held against them.

    Args:
        dataset: open with the columns.
        targets: (column, target) of each.
        weight: of the alignment's loss.

    Raises:
        AbsentError: no such column or target, or one without statistics (it has no axis of channels).
    """

    def __init__(self, dataset: Dataset, targets: Sequence[tuple[str, str]], weight: float) -> None:
        self.dataset, self.targets, self.weight = dataset, tuple(targets), weight
        self._statistics = {target: Statistics.of(dataset.statistics(*target)) for target in self.targets}
        self._axes = {target: dataset.specs(target[0])[target[1]].channel_axis or 0 for target in self.targets}

    @classmethod
    def from_environment(cls) -> Latents:
        """Of the variables that the module names."""
        if not os.environ.get(DATA):
            raise ConfigError(f"latents: set {DATA} to the dataset that has the columns of {LATENTS}")
        pairs = [one.strip().partition("/") for one in os.environ[LATENTS].split(",")]
        if not all(column and name for column, _, name in pairs):
            raise ConfigError(f"{LATENTS} is {os.environ[LATENTS]!r}, expected column/target, column/target, ...")
        targets = [(column, name) for column, _, name in pairs]
        dataset = Dataset(os.environ[DATA], columns=sorted({column for column, _ in targets}))
        return cls(dataset, targets, float(os.environ.get(WEIGHT, "0.1")))

    def adapters(self, width: int) -> nn.ModuleDict:
        """One a target, for hidden states of this width."""
        return nn.ModuleDict(
            {_key(*target): Adapter(width, len(found.mean), width) for target, found in self._statistics.items()}
        )

    def collator(self, inner: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
        """The template's collator with ``latents`` and ``prompt_mask``, bool [B, L], in its batch.

        ms-swift keeps a row's extra columns in ``_extra_kwargs``, and would hand them to the model.
        """
        wanted: dict[str, list[str]] = {}
        for column, name in self.targets:
            wanted.setdefault(column, []).append(name)
        return partial(_collate, LatentCollator(self.dataset, wanted, partial(_with_prompt_mask, inner)))

    def losses(
        self,
        states_BLD: Tensor,
        prompt_BL: Tensor,
        latents: Mapping[str, Mapping[str, Tensor]],
        adapters: nn.ModuleDict,
    ) -> dict[str, Tensor]:
        """The alignment of each target, a scalar: a mean over the batch."""
        weights = prompt_BL.to(states_BLD.dtype).unsqueeze(-1)
        pooled_B1D = (states_BLD * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
        out = {}
        for column, name in self.targets:
            stored = latents[column][name].to(states_BLD.device).float().movedim(self._axes[column, name] + 1, -1)
            pooled_BC = stored.flatten(1, -2).mean(1) if stored.ndim > 2 else stored
            wanted_BC = self._statistics[column, name].standardise(pooled_BC)
            found = alignment(adapters[_key(column, name)](pooled_B1D), wanted_BC.unsqueeze(1))
            out[_key(column, name)] = found.cosine + found.smooth_l1
        return out


def _key(column: str, name: str) -> str:
    return f"{column}_{name}"


def _collate(latents: LatentCollator, features: Sequence[Mapping[str, Any]]) -> Any:
    rows = []
    for feature in features:
        extra = feature.get("_extra_kwargs") or {}
        if "token" not in extra:
            raise DatasetError(
                "latents: a row has no 'token'; export with `python -m jobs.export`, and give ms-swift "
                "--remove_unused_columns false"
            )
        rows.append({**{k: v for k, v in feature.items() if k != "_extra_kwargs"}, "token": extra["token"]})
    return latents(rows)


def _with_prompt_mask(inner: Callable[[list[dict[str, Any]]], Any], features: list[dict[str, Any]]) -> Any:
    batch = inner(features)
    batch["prompt_mask"] = (batch["labels"] == -100) & batch["attention_mask"].bool()
    return batch


orms["pdms"] = SwiftReward
orms["questions"] = SwiftQuestionReward
if os.environ.get(LATENTS):
    TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.LatentTrainer"
