"""A student on held-out samples: losses, cosine to each teacher, and how far its answers (`Student.answer`) are off.

ADE at t is the mean distance of the positions up to t seconds, FDE the distance at t, in metres, over samples whose
answer parses; answers that do not are counted. `cosine_wm` is between standardised features (what is trained on; the
mean over all latents gets 0, what a latent's place alone explains still counts), `cosine_wm_raw` between the teacher's
own, where the mean alone is often near 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from trainer import distributed
from trainer.batch import Batch
from trainer.held import shared
from trainer.losses import answer_loss
from trainer.model import SFTModel
from trainer.segments import allow_table
from trainer.students.base import Prompt, Student
from trainer.tally import Number, add, known, mean, read

SECONDS = (1, 2, 3, 4)
"""Horizons of ADE and FDE; those beyond the answers' last step are left out."""
STEPS_PER_SECOND = 2


def displacement(predicted_BS3: Tensor, future_BS3: Tensor) -> dict[str, Tensor]:
    """ADE and FDE of each sample in metres, float [B] a key (``ade_1`` .. ``fde_4``), of trajectories [B, S, 3].

    Steps are 0.5 s apart, the first is at 0.5 s; horizons beyond S are left out.
    """
    distance_BS = (predicted_BS3 - future_BS3)[..., :2].norm(dim=-1)
    out = {}
    for seconds in SECONDS:
        steps = seconds * STEPS_PER_SECOND
        if steps <= distance_BS.shape[1]:
            out[f"ade_{seconds}"] = distance_BS[:, :steps].mean(1)
            out[f"fde_{seconds}"] = distance_BS[:, steps - 1]
    return out


@contextmanager
def zeroed_latents(student: Student) -> Iterator[None]:
    """While this holds, the states of the latents are zero before and after every layer (the dependency control)."""
    count = sum(student.latents.counts.values())
    where: list[slice] = []
    own = student.prompt

    def prompt(batch: Batch) -> Prompt:
        made = replace(own(batch), padding="any")  # padding stays where it is
        end = student.at(made) + 1 - student.prefix
        where[:] = [slice(end - count, end)]
        return made

    def zero(states: Tensor) -> Tensor:
        if states.shape[1] == 1:  # a step of decoding: the latents are in the cache
            return states
        keep = torch.ones(states.shape[1], 1, device=states.device, dtype=states.dtype)
        keep[where[0]] = 0
        return states * keep

    hooks = [student.blocks[0].register_forward_pre_hook(lambda _m, args: (zero(args[0]), *args[1:]))]
    hooks += [block.register_forward_hook(lambda _m, _a, out: zero(out)) for block in student.blocks]
    student.prompt = prompt  # type: ignore[method-assign]
    try:
        yield
    finally:
        del student.prompt  # the class's own again
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def evaluate(
    model: SFTModel, batches: Sequence[Batch], stage: int, device: torch.device, *, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Means over all samples of all batches; the ranks share the batches.

    Args:
        model: student and adapters.
        batches: held-out; the same on every rank. Each rank reads its own.
        stage: whose allow table holds.
        device: of the model.
        dtype: of autocast.

    Returns:
        ``answer``, ``cosine_wm``, ``cosine_wm_raw``, ``cosine_geo``, ``cosine_geo_raw``, ``ade_*``, ``fde_*``,
        ``unparsed`` (share), ``samples``. Where no answer parses there is no ``ade_*`` and no ``fde_*``.
    """
    training = model.training
    model.eval()
    table, sums = allow_table(stage), dict[str, Number]()
    for _, prepared, counts in shared(batches, model.student):
        batch = prepared.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            found = _sums(model, batch, table)
        add(sums, found if counts else dict.fromkeys(found, 0.0))
    model.train(training)
    distributed.reshard(model)
    total = distributed.summed(read(sums), device)
    samples, parsed = total.pop("samples"), total.pop("parsed")
    means = {k: mean(v, parsed if k[:4] in ("ade_", "fde_") else samples) for k, v in total.items()}
    return {**known(means), "unparsed": 1 - parsed / samples, "samples": samples}


def _sums(model: SFTModel, batch: Batch, table: Tensor) -> dict[str, Number]:
    student, n = model.student, len(batch)
    answers = student.answers.encode(batch.future, batch.status)
    out = student(batch, answers, table)
    sums: dict[str, Number] = {"answer": n * answer_loss(out.logits, answers).double(), "samples": float(n)}
    for kind in model.adapters:
        predicted, stats = model.predict(kind, out.latents[kind]).float(), model.statistics[kind]
        target = batch.targets[kind].float()
        sums[f"cosine_{kind}"] = _cosine(predicted, stats.standardise(target))
        sums[f"cosine_{kind}_raw"] = _cosine(stats.restore(predicted), target)
    trajectory, parsed = student.answer(batch, table)
    sums["parsed"] = parsed.sum()
    for key, value in displacement(trajectory, batch.future.float()).items():
        sums[key] = (value * parsed).sum()
    return sums


def _cosine(a_BNC: Tensor, b_BNC: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(a_BNC, b_BNC, dim=-1, eps=1e-6).mean(1).sum()


def summary(metrics: Mapping[str, float]) -> str:
    """One line of the metrics of `evaluate`, for a person."""
    last = max((k for k in metrics if k.startswith("ade_")), default=None)
    shown = {
        "CE": metrics["answer"],
        **{f"cos {kind}": metrics[key] for kind in ("wm", "geo") if (key := f"cosine_{kind}") in metrics},
        **({"ADE": metrics[last], "FDE": metrics[last.replace("ade", "fde")]} if last else {}),
    }
    text = ", ".join(f"{k} {v:.3f}" for k, v in shown.items())
    return text + (f", {metrics['unparsed']:.1%} did not parse" if metrics["unparsed"] else "")
