"""GRPO from a supervised policy, with NAVSIM's score as the reward: one loop over batches of scenes.

A step samples G answers of each scene, scores them from the reward column, and takes `inner` optimiser steps on those
whose group has any spread; groups without are dropped and counted. Policy and reference are in eval mode throughout, so
that no dropout stands between who answered and who is asked. The old log-probabilities are not the sampler's, which
decodes with a cache and differs in the last bits, but those of the first teacher-forced pass itself, detached: the
first ratio is exactly 1. How far the sampler was from them is logged (`gap`).

Everything that decides step n is in the checkpoint: weights, optimiser, RNG and sampling generator of each rank, and
the stream's cursor; so a run that was killed and started again ends with the same bits on the CPU. The end is a policy
file like those of SFT's stages, ``policy.pt``.

Legend: S scenes of this rank, G answers each, B = S G, A tokens, V vocabulary, T poses.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.reader import Dataset
from pipeline.stream import ShardStream
from shards_schema.errors import AbsentError, ConfigError, MismatchError, MissingFileError
from trainer import build, checkpoint, distributed
from trainer.batch import Batch, collate
from trainer.config import SFTConfig
from trainer.data import ExampleMaker, notices, split
from trainer.grpo_config import GRPOConfig
from trainer.latents import LATENTS, Statistics
from trainer.loop import FREE, batches_of, clipped, learning_rate, make_optimiser, refuse_other, set_rate
from trainer.model import SFTModel
from trainer.policy_loss import PolicyLoss, StepSize, group_advantages, policy_loss
from trainer.reward import POSES, Reward
from trainer.scored import Driven, policy_scores, scored
from trainer.segments import allow_table
from trainer.students.base import Student

Log = Callable[[str], None]

POLICY = "policy.pt"


class Asked(NamedTuple):
    """A teacher-forced pass over answers.

    Attributes:
        logp: float32 [B, A] at the sampling temperature; 0 on padding.
        entropy: float32 [B, A], of the whole distribution.
        aligned: kind -> alignment loss; empty without a regulariser.
    """

    logp: Tensor
    entropy: Tensor
    aligned: dict[str, Tensor]


class PolicyPass(nn.Module):
    """Model and temperature as one module that DDP can wrap; it has no weights of its own."""

    def __init__(self, model: SFTModel, config: GRPOConfig, table: Tensor) -> None:
        super().__init__()
        self.model, self._config, self._table = model, config, table

    def forward(self, batch: Batch, answers_BA: Tensor) -> Asked:
        """What the policy thinks of answers."""
        out = self.model.student(batch, answers_BA, self._table)
        logp_BAV = (out.logits.float() / self._config.temperature).log_softmax(-1)
        chosen = logp_BAV.gather(-1, answers_BA.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        valid_BA = answers_BA >= 0
        entropy = -(logp_BAV.exp() * logp_BAV).sum(-1)
        aligned: dict[str, Tensor] = {}
        if self._config.regulariser.on:
            weight = self._config.regulariser.smooth_l1
            aligned = {k: a.cosine + weight * a.smooth_l1 for k, a in self.model.align(out.latents, batch).items()}
        return Asked(torch.where(valid_BA, chosen, 0.0), torch.where(valid_BA, entropy, 0.0), aligned)


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """What a step learns from.

    Attributes:
        passes: rows [n] of the answers that go through the network together, and whether they count.
        batch: of scenes, each G times.
        answers: int64 [B, A].
        advantage: float32 [B].
        sampled: float32 [B, A], the sampler's log-probabilities.
        size: of the whole step.
    """

    passes: Sequence[tuple[Tensor, bool]]
    batch: Batch
    answers: Tensor
    advantage: Tensor
    sampled: Tensor
    size: StepSize


class GRPO:
    """A run, ready to `fit`.

    Args:
        config: the recipe.
        device: of this rank.
        log: takes lines for a person (rank 0 only).
        on_step: takes (step, numbers) after each logged step and evaluation (rank 0 only).

    Attributes:
        step: steps done.
        sft: the recipe that the policy comes from.
        notices: what has to be said of whatever comes out.

    Raises:
        ConfigError, DatasetError: data and policy do not fit.
        MismatchError: `out` holds a run of another recipe or of another policy.
    """

    def __init__(
        self,
        config: GRPOConfig,
        device: torch.device,
        *,
        log: Log = print,
        on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self.config, self.device, self.step = config, device, 0
        self._log, self._on_step = log, on_step or (lambda step, numbers: None)
        self._dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        begun = checkpoint.load(Path(config.policy))
        self._policy_digest = hashlib.sha256(Path(config.policy).read_bytes()).hexdigest()
        self.sft = SFTConfig.model_validate_json(begun["config"])
        self._origin = {k: begun[k] for k in ("config", "answers", "statistics", "history", "stage", "table_stage")}
        self.table = allow_table(begun["table_stage"])
        if self.sft.samples.steps != POSES:
            raise ConfigError(
                f"{config.policy}: its answers have {self.sft.samples.steps} poses, the reward wants {POSES} (4 s)"
            )
        self._read(begun)
        latest = checkpoint.latest(self._folder)
        resumed = None if latest is None else checkpoint.load(latest)
        if resumed is not None:
            refuse_other(resumed["grpo"], config, latest, FREE | {"policy"})
            if resumed["policy_digest"] != self._policy_digest:
                raise MismatchError(f"{latest}: begun from another policy than {config.policy}; give another out")
        self._build(begun, resumed)

    @property
    def _folder(self) -> Path:
        return Path(self.config.out) / "checkpoints"

    def _read(self, begun: Mapping[str, Any]) -> None:
        """Data: what SFT held out stays held out."""
        config, sft = self.config, self.sft
        targets = sft.targets if config.regulariser.on else {}
        wanted = dict.fromkeys(["samples", *(t.column for t in targets.values()), config.reward.column])
        try:
            self.dataset = Dataset(config.data, columns=wanted)
        except MissingFileError as error:
            raise AbsentError(
                f"{config.data}: {error}; GRPO needs the columns {', '.join(wanted)} (`python -m jobs.teachers`, "
                f"docs/reward.md; regulariser.wm=0 regulariser.geo=0 does without the teachers')"
            ) from error
        options = config.reward
        self.reward = Reward(
            self.dataset,
            version=options.version,
            column=options.column,
            use_human_filter=options.use_human_filter,
            device=self.device,
            max_bytes=options.max_bytes,
            keep=options.keep,
        )
        self.train_tokens, self.held_tokens = self._split(set(begun["held_out"]), self.dataset.tokens(*wanted))
        if len(self.train_tokens) < config.stream.batch_size * distributed.world_size():
            raise ConfigError(
                f"{config.data}: {len(self.train_tokens)} training samples, fewer than stream.batch_size "
                f"{config.stream.batch_size} x {distributed.world_size()} ranks: there is no whole batch"
            )
        own = [*begun["notices"], *notices(self.dataset, targets)]
        self.notices = list(dict.fromkeys(own))
        self.reader = ExampleMaker(self.dataset, sft.samples, targets)
        self.stream = ShardStream(
            self.dataset, self.reader.wanted, config.stream, tokens=self.train_tokens, transform=self.reader
        )

    def _split(self, held: set[str], tokens: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """By the logs that SFT held out, where this dataset has any of them; else as SFT would have."""
        plan = self.dataset.plan.table
        log_of = dict(zip(plan["token"].to_pylist(), plan["log"].to_pylist(), strict=True))
        logs = {log_of[t] for t in held & log_of.keys()}
        if not logs & {log_of[t] for t in tokens}:
            return split(self.dataset, tokens, self.sft.samples)
        return tuple(t for t in tokens if log_of[t] not in logs), tuple(t for t in tokens if log_of[t] in logs)

    def _build(self, begun: Mapping[str, Any], resumed: Mapping[str, Any] | None) -> None:
        config, sft = self.config, self.sft
        self.answers = build.restore_answers(begun["answers"], sft.student)
        views, history = len(sft.samples.views), begun["history"]
        student = build.make_student(sft.student, self.answers, sft.counts, views=views, history=history)
        statistics = {k: Statistics(v["mean"], v["std"]) for k, v in begun["statistics"].items()}
        channels = {kind: len(statistics[kind].mean) for kind in LATENTS}
        self.model = SFTModel(student, channels, sft.adapter, statistics)
        parts = ("student", "adapters")
        checkpoint.load_weights(self.model, {f"{p}.{k}": v for p in parts for k, v in begun[p].items()})
        if not config.regulariser.on:
            self.model.adapters.requires_grad_(False)
        self.model.to(self.device).eval()
        self.reference: Student | None = None
        if config.beta:
            self.reference = build.make_student(sft.student, self.answers, sft.counts, views=views, history=history)
            checkpoint.load_weights(self.reference, begun["student"])
            self.reference.to(self.device).requires_grad_(False).eval()
            distributed.shard(self.reference, (), config.parallel, self.device, self._dtype)
        distributed.shard(student, self.model.adapters.values(), config.parallel, self.device, self._dtype)
        self._pass = distributed.wrap(PolicyPass(self.model, config, self.table), config.parallel, self.device).eval()
        self._sampler = torch.Generator(self.device).manual_seed(config.seed * 1_000_003 + distributed.rank())
        torch.manual_seed(config.seed + distributed.rank())
        self._optimiser = make_optimiser(self.model, config.optimiser)
        if resumed is not None:
            self.step = int(resumed["step"])
            checkpoint.restore(self.model, self._optimiser, resumed, config.seed)
            self.stream.load_state_dict(resumed["stream"])
            states = resumed["sampler"]
            if len(states) == distributed.world_size():
                self._sampler.set_state(states[distributed.rank()])
            else:
                self._sampler.manual_seed(config.seed * 1_000_003 + distributed.rank() + 7_919 * self.step)
            self._log(f"resumed at step {self.step} of {config.steps}")

    def held_batches(self, limit: int | None = None) -> list[Batch]:
        """Held-out samples in batches, spread over the split where there is a limit."""
        tokens = self.held_tokens
        if limit is not None and limit < len(tokens):
            tokens = tuple(tokens[i * len(tokens) // limit] for i in range(limit))
        examples = [self.reader.read(t) for t in tokens]
        return [collate(examples[i : i + 32]) for i in range(0, len(examples), 32)]

    def evaluate(self, batches: Sequence[Batch]) -> Driven:
        """Held-out scenes, driven by the policy as it is."""
        return policy_scores(
            self.model.student, batches, self.reward, self.table, self.device,
            temperature=self.config.temperature, samples=self.config.evaluate_samples, dtype=self._dtype,
        )  # fmt: skip

    def fit(self, *, until: int | None = None, on_batch: Callable[[int], None] | None = None) -> None:
        """Train to the end, or to step `until`, from where the run stands.

        Args:
            until: stop after this step, as a kill between two steps would (what was not saved is lost).
            on_batch: called with each step done.

        Raises:
            DivergedError: a gradient that is not finite.
            SampleError, AbsentError: a scene cannot be scored.
        """
        config, end = self.config, min(until or self.config.steps, self.config.steps)
        if self.step >= end:
            return
        held = self.held_batches(config.evaluate_limit)
        batches = batches_of(self.stream, config.stream.batch_size, self.device)
        window: dict[str, float] = {}
        began, since = time.perf_counter(), self.step
        while self.step < end:
            for name, value in self._step(next(batches).to(self.device)).items():
                window[name] = window.get(name, 0.0) + value
            self.step += 1
            if on_batch is not None:
                on_batch(self.step)
            if self.step % config.log_every == 0:
                self._report({f"train/{k}": v for k, v in self._means(window).items()} | {
                    "train/lr": learning_rate(config, self.step - 1),
                    "train/seconds": (time.perf_counter() - began) / (self.step - since),
                })  # fmt: skip
                window = {}
            if self.step % config.evaluate_every == 0 or self.step == config.steps:
                self._report({f"held/{k}": v for k, v in self.evaluate(held).means().items()})
            if self.step == config.steps:  # before the checkpoint, or a kill between the two would leave no policy
                self._save_policy()
            if self.step % config.save_every == 0 or self.step == config.steps:
                self.save()
        batches.close()

    def _report(self, numbers: Mapping[str, float]) -> None:
        if distributed.rank() == 0:
            self._on_step(self.step, numbers)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not torch.float32)

    def _step(self, batch: Batch) -> dict[str, float]:
        """Sample, score, learn; sums of what is logged, of this rank."""
        rollout, numbers = self._sample(batch)
        if not rollout.size.answers and not self.config.regulariser.on:
            return numbers  # no group of any rank has any spread: there is nothing to learn from
        set_rate(self._optimiser, learning_rate(self.config, self.step))
        reference = self._references(rollout)
        old: list[Tensor] = []
        for k in range(self.config.inner):
            for name, value in self._update(rollout, reference, old, first=k == 0).items():
                numbers[name] = numbers.get(name, 0.0) + value
        return numbers

    @torch.no_grad()
    def _sample(self, batch: Batch) -> tuple[Rollout, dict[str, float]]:
        config, g = self.config, self.config.group
        many = batch.repeat(g)
        with self._autocast():
            said = self.model.student.sample(many, self.table, temperature=config.temperature, generator=self._sampler)
        distributed.reshard(self.model)
        poses, parsed = self.answers.decode(said.tokens, many.status)
        rows, counted = scored(self.reward, batch.tokens, poses.view(-1, g, *poses.shape[1:]), parsed.view(-1, g))
        advantage_SG, spread_S = group_advantages(rows["score"], scale=config.scale)
        if config.controls.shuffle_advantages:
            dealt = torch.rand(advantage_SG.shape, generator=self._sampler, device=self.device).argsort(1).cpu()
            advantage_SG = advantage_SG.gather(1, dealt)
        kept = spread_S.repeat_interleave(g).nonzero().squeeze(1).to(self.device)
        numbers = {
            "scenes": float(len(batch)),
            "answers": float(len(many)),
            "spread": rows["score"].std(1).sum().item(),
            "dropped": float((~spread_S).sum()),
            "unparsed": float((~counted).sum()),
            **{f"reward/{name}": value.sum().item() for name, value in rows.items()},
        }
        passes, size = self._divide(kept, said.tokens)
        advantage_B = advantage_SG.flatten().float().to(self.device)
        return Rollout(passes, many, said.tokens, advantage_B, said.logp, size), numbers

    def _divide(self, kept: Tensor, answers_BA: Tensor) -> tuple[list[tuple[Tensor, bool]], StepSize]:
        """The passes of this rank, as many as any rank has (FSDP gathers weights in each), and the step's size."""
        parts = list(torch.split(kept, self.config.micro or len(kept))) if len(kept) else []
        most = max(1, *distributed.gathered(len(parts)))
        blank = torch.zeros(1, dtype=torch.long, device=kept.device)
        passes = [(rows, True) for rows in parts] + [(blank, False)] * (most - len(parts))
        tokens = float((answers_BA[kept] >= 0).sum())
        own = {"answers": float(len(kept)), "tokens": tokens, "passes": float(len(parts))}
        total = distributed.summed(own, self.device)
        size = StepSize(total["answers"], total["tokens"], self.answers.length, int(total["passes"]))
        return passes, size

    @torch.no_grad()
    def _references(self, rollout: Rollout) -> list[Tensor | None]:
        """The reference's log-probabilities, a pass each."""
        if self.reference is None:
            return [None] * len(rollout.passes)
        found: list[Tensor | None] = []
        for rows, _ in rollout.passes:
            with self._autocast():
                part = rollout.batch.take(rows)
                found.append(self.reference.logp(part, rollout.answers[rows], self.table, self.config.temperature))
        distributed.reshard(self.reference)
        return found

    def _update(
        self, rollout: Rollout, references: Sequence[Tensor | None], old: list[Tensor], *, first: bool
    ) -> dict[str, float]:
        """One optimiser step on a rollout; fills `old` in the first one."""
        config, world, last = self.config, distributed.world_size(), len(rollout.passes) - 1
        self._optimiser.zero_grad(set_to_none=True)
        numbers: dict[str, Tensor] = {}
        for i, ((rows, counts), reference) in enumerate(zip(rollout.passes, references, strict=True)):
            answers = rollout.answers[rows]
            mask = (answers >= 0) & counts
            with distributed.no_sync(self._pass, last=i == last):
                with self._autocast():
                    asked: Asked = self._pass(rollout.batch.take(rows), answers)
                if first:
                    old.append(asked.logp.detach())
                found = policy_loss(
                    asked.logp, old[i], reference, rollout.advantage[rows], mask, rollout.size,
                    kind=config.loss, beta=config.beta, kl_ratio=config.kl_ratio,
                    clip_low=config.clip_low, clip_high=config.clip_high,
                )  # fmt: skip
                # losses of passes and ranks add up, and DDP and FSDP average: hence the factor; alignment is a mean
                loss = found.loss * world
                share = len(rows) / sum(len(r) for r, _ in rollout.passes)
                for kind, value in asked.aligned.items():
                    loss = loss + share * getattr(config.regulariser, kind) * value
                loss.backward()  # type: ignore[no-untyped-call]
            gap = ((rollout.sampled[rows] - old[i]).abs() * mask).max()
            for name, value in _logged(found, world * found.loss.detach(), asked, mask, gap, share).items():
                numbers[name] = numbers.get(name, torch.zeros_like(value)) + value
        last_good = checkpoint.latest(self._folder)
        norm = clipped(self.model, config.optimiser.clip, self.step, numbers, last_good)
        self._optimiser.step()
        numbers |= {"gradient": norm, "updates": torch.ones(())}
        return {name: float(value) for name, value in numbers.items()}

    def _means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Over scenes, answers, tokens or updates, and ranks, of the steps since the last time."""
        names = sorted({name for part in distributed.gathered(sorted(sums)) for name in part})
        total = distributed.summed({name: sums.get(name, 0.0) for name in names}, self.device)
        per = {"spread": "scenes", "dropped": "scenes", "unparsed": "answers"}
        per |= dict.fromkeys(("kl", "clipped_low", "clipped_high", "ratio", "entropy"), "tokens")
        out = {}
        for name, value in total.items():
            if name in ("scenes", "answers", "tokens", "updates"):
                continue
            unit = "answers" if name.startswith("reward/") else per.get(name, "updates")
            if total.get(unit):
                out[name] = value / total[unit]
        return out

    def save(self) -> None:
        """Write a checkpoint of this step, and let go of old ones."""
        content = self._common() | {
            "step": self.step,
            "stream": self.stream.state_dict(),
            "sampler": distributed.gathered(self._sampler.get_state()),
            **checkpoint.training_state(self.model, self._optimiser),
        }
        checkpoint.save(self._folder / f"step_{self.step:08d}.pt", content)
        checkpoint.prune(self._folder, self.config.keep)

    def _save_policy(self) -> None:
        whole = checkpoint.weights_of(self.model)
        student = {k.removeprefix("student."): v for k, v in whole.items() if k.startswith("student.")}
        adapters = {k.removeprefix("adapters."): v for k, v in whole.items() if k.startswith("adapters.")}
        if not self.config.regulariser.on:  # frozen, so not among what is trained
            adapters = {k: v.detach().cpu() for k, v in self.model.adapters.state_dict().items()}
        content = self._common() | {"student": student, "adapters": adapters, "step": self.step}
        checkpoint.save(Path(self.config.out) / POLICY, content)

    def _common(self) -> dict[str, Any]:
        return self._origin | {
            "grpo": self.config.model_dump_json(),
            "policy_digest": self._policy_digest,
            "dataset": self.dataset.digest,
            "held_out": list(self.held_tokens),
            "notices": self.notices,
        }


def _logged(
    found: PolicyLoss, loss: Tensor, asked: Asked, mask_BA: Tensor, gap: Tensor, share: float
) -> dict[str, Tensor]:
    out = {
        "loss": loss,
        "tokens": found.tokens,
        "kl": found.kl,
        "clipped_low": found.clipped_low,
        "clipped_high": found.clipped_high,
        "ratio": found.ratio,
        "entropy": (asked.entropy.detach() * mask_BA).sum(),
        "gap": gap.detach() * share,
    }
    return out | {f"align_{kind}": value.detach() * share for kind, value in asked.aligned.items()}
