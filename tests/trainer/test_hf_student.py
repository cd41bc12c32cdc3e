"""The three families of VLM students as tiny random models: exact masks, equal log-probabilities, what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shards_schema.errors import ConfigError
from tests.trainer.reward_toys import grpo_recipe, sft_policy
from tests.trainer.shard_toys import recipe
from tests.trainer.trainer_toys import (
    CHANNELS,
    COUNTS,
    a_group_of_answers_stands_behind_one_prompt,
    a_group_shares_the_pass_over_its_prompt,
    assert_same,
    batch_of,
    motion_answers,
    student_needs_no_mask_in_stage_2,
    tensors_of,
)
from tests.trainer.vlm_toys import hf_student, image_processor, tokenizer, vlm
from trainer import checkpoint, distributed
from trainer.answers.text import TextAnswers
from trainer.build import load_policy
from trainer.config import OptimiserConfig
from trainer.distributed import ParallelConfig
from trainer.grpo import GRPO
from trainer.latents import Statistics
from trainer.leaks import LeakError, check, cut, influence
from trainer.losses import LossWeights
from trainer.model import SFTModel
from trainer.optimiser import make_optimiser, set_rate
from trainer.segments import Segment, allow_table, attention_mask
from trainer.sft import SFT
from trainer.students import base
from trainer.students.hf import FAMILIES, HFStudent
from trainer.students.hf_config import HFConfig

CPU = torch.device("cpu")


def text_answers(steps: int = 2) -> TextAnswers:
    """Waypoints in the words of the toy tokenizer."""
    words = tokenizer()
    return TextAnswers(
        steps,
        1,
        encoder=lambda text: words(text, add_special_tokens=False).input_ids,
        decoder=lambda ids: words.decode(ids),
        vocabulary=len(words),
        end=words.eos_token_id,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_exactly_zero_where_forbidden(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, batch = hf_student(family).eval(), batch_of(1)
    answers = student.answers.encode(batch.future, batch.status)
    for stage in (1, 2):
        check(student, batch, answers, allow_table(stage))
    assert influence(student, batch, answers, allow_table(1))[Segment.ANSWER, Segment.IMAGE] > 0
    assert influence(student, batch, answers, cut(allow_table(1)))[Segment.ANSWER, Segment.IMAGE] == 0
    right = base.attention_mask

    def leaky(segments: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        table = table.clone()
        table[Segment.TEXT, Segment.IMAGE] = True
        return right(segments, table)

    monkeypatch.setattr("trainer.leaks.attention_mask", leaky)
    with pytest.raises(LeakError, match="text <- image"):
        check(student, batch, answers, allow_table(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_after_the_cut_pixels_change_nothing_bitwise(family: str) -> None:
    """The pixels themselves, through the vision tower (and Qwen3's deepstack), not only the first layer's inputs."""
    student, batch = hf_student(family).eval(), batch_of(2)
    answers = student.answers.encode(batch.future, batch.status)
    swapped = replace(batch, images=batch_of(2, seed=7).images)
    for table, same in ((cut(allow_table(1)), True), (allow_table(1), False)):
        with torch.no_grad():
            assert torch.equal(student(batch, answers, table).logits, student(swapped, answers, table).logits) == same


@pytest.mark.parametrize("kind", ["motion", "text"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_decode_equal_the_full_forward(family: str, stage: int, kind: str) -> None:
    """Prompts of different length (padding on the left), sampled with a cache against one teacher-forced pass."""
    student = hf_student(family, text_answers() if kind == "text" else None).eval()
    batch, table = batch_of(3), allow_table(stage)
    batch.status[0, :3] *= 30
    assert (student.prompt(batch).segments == Segment.PAD).any()
    sampled = student.sample(batch, table, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        again = student.logp(batch, sampled.tokens, table)
    assert (again - sampled.logp).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["motion", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_shares_the_pass_over_its_prompt(family: str, kind: str) -> None:
    student = hf_student(family, text_answers() if kind == "text" else None).eval()
    batch, table = batch_of(3), allow_table(1)
    batch.status[0, :3] *= 30  # prompts of different length
    a_group_shares_the_pass_over_its_prompt(student, batch, table)


@pytest.mark.parametrize(("family", "kind"), [("internvl", "text"), ("qwen2_5_vl", "motion"), ("qwen3_vl", "text")])
def test_a_group_of_answers_stands_behind_one_prompt(family: str, kind: str) -> None:
    student = hf_student(family, text_answers() if kind == "text" else None).eval()
    batch, stage = batch_of(2), 1 if kind == "text" else 2
    batch.status[0, :3] *= 30  # prompts of different length
    a_group_of_answers_stands_behind_one_prompt(student, batch, allow_table(stage))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str) -> None:
    student, batch = hf_student(family).eval(), batch_of(2)
    batch.status[0, :3] *= 30
    answers = student.answers.encode(batch.future, batch.status)
    with torch.no_grad():
        both = student(batch, answers, allow_table(1)).logits
        each = torch.cat([student(batch[i : i + 1], answers[i : i + 1], allow_table(1)).logits for i in range(2)])
    torch.testing.assert_close(both, each, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_prepared_once_for_all_its_passes(family: str) -> None:
    """Passes and slices of it have the prompts, bit for bit, that they would have alone; with two views."""
    student, batch = hf_student(family, text_answers()), batch_of(4, views=2)
    batch.status[0, :3] *= 30  # the longest text by far
    made = student.prepare(batch)
    assert student.prepare(made) is made
    rows = (3, 1, 1)
    pairs = [
        (made, batch),
        (made[1:3], batch[1:3]),
        (made.take(torch.tensor(rows), rows), batch.take(torch.tensor(rows), rows)),
    ]
    alone = [student.prompt(plain) for _, plain in pairs]
    student._processor = student._tokenizer = None
    for (ready, plain), expected in zip(pairs, alone, strict=True):
        found = student.prompt(ready)
        assert found.segments.shape[1] == max(student_lengths(expected.segments))
        assert torch.equal(found.segments, expected.segments)
        assert torch.equal(found.data.ids, expected.data.ids)
        assert torch.equal(found.data.positions, expected.data.positions)
        assert found.data.vision.keys() == expected.data.vision.keys()
        assert all(torch.equal(found.data.vision[name], value) for name, value in expected.data.vision.items())
        assert ready.tokens == plain.tokens


def student_lengths(segments: torch.Tensor) -> list[int]:
    """Of the prompts, without their padding."""
    lengths: list[int] = (segments != Segment.PAD).sum(1).tolist()
    return lengths


def test_batches_are_prepared_in_reading_threads() -> None:
    """One tokenizer, four threads."""
    student, batches = hf_student("internvl"), [batch_of(2, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(student.prepare, batches))
    for ready, batch in zip(found, batches, strict=True):
        expected = student.prepare(batch)
        assert ready.lengths == expected.lengths
        assert all(torch.equal(ready.prepared[name], value) for name, value in expected.prepared.items())


@pytest.mark.parametrize("family", ["internvl", "qwen3_vl"])
def test_images_go_through_the_processor_once_a_step(
    family: str, reward_shards: str, shards: str, tmp_path: Path
) -> None:
    """SFT with accumulation; GRPO with groups, a reference, two updates and passes of three answers."""
    folder = tmp_path / "model"
    for part in (vlm(family), tokenizer(), image_processor(family)):
        part.save_pretrained(folder)  # type: ignore[operator, union-attr]
    student = {"kind": "hf", "model": str(folder)}
    calls = []

    def counting(run: SFT | GRPO) -> None:
        inner = run.model.student._processor
        run.model.student._processor = lambda images, **kw: calls.append(len(images)) or inner(images=images, **kw)  # type: ignore[assignment]
        if isinstance(run, GRPO):
            assert run.reference is not None
            run.reference._processor = None  # type: ignore[assignment]

    cpu, quiet = torch.device("cpu"), {"evaluate_every": 9, "save_every": 9}
    one = [{"stage": 2, "steps": 1, "lr": 1e-3}]
    two = {"batch_size": 2, "threads": 0, "prefetch": 1}
    policy = sft_policy(reward_shards, tmp_path / "sft", student=student, stages=one, stream=two)
    stages = [{"stage": 2, "steps": 3, "lr": 1e-3}]
    recipes = recipe(
        shards, tmp_path / "a", student=student, stages=stages, stream=two, optimiser={"accumulate": 2}, **quiet
    )
    sft = SFT(recipes, cpu, log=lambda text: None)
    counting(sft)
    sft.fit(until=2)
    assert calls[:4] == [2, 2, 2, 2]
    assert len(calls) <= 5  # one batch is read ahead
    calls.clear()
    changes = {"inner": 2, "micro": 3, "group": 4, "stream": two, **quiet}
    grpo = GRPO(grpo_recipe(reward_shards, policy, tmp_path / "b", **changes), cpu, log=lambda text: None)
    counting(grpo)
    grpo.fit(until=2)
    assert calls[:2] == [2, 2]
    assert len(calls) <= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_stage_2_is_the_models_own_causal_mask(family: str) -> None:
    """With no mask of ours at all, transformers' causal one gives the same states."""
    student, batch = hf_student(family).eval(), batch_of(1)
    answers = student.answers.encode(batch.future, batch.status)
    prompt = student.prompt(batch)
    segments = torch.cat((prompt.segments, torch.full_like(answers, int(Segment.ANSWER))), 1)
    assert not (segments == Segment.PAD).any()
    with torch.no_grad():
        ours = student.run(prompt, answers, attention_mask(segments, allow_table(2))).last
        theirs = student.run(prompt, answers, None).last  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_stage_2_needs_no_mask(family: str) -> None:
    """Nor does padding before the rows: logits, latents, gradients are those under the mask."""
    student, batch = hf_student(family).double().eval(), batch_of(3)
    batch.status[0, :3] *= 30
    assert (student.prompt(batch).segments == Segment.PAD).any()
    student_needs_no_mask_in_stage_2(student, batch, close=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_is_refused(family: str) -> None:
    parts = (tokenizer(), image_processor(family), HFConfig(model=family), motion_answers(), COUNTS)
    with pytest.raises(ConfigError, match="eager adds it as 0 and 1"):
        HFStudent(vlm(family, "eager"), *parts)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_are_the_models_own(family: str) -> None:
    """3-D positions of a whole sequence with its answer: those that `get_rope_index` gives to it."""
    student, batch = hf_student(family).eval(), batch_of(2)
    batch.status[0, :3] *= 30
    seen: dict[str, torch.Tensor] = {}
    handle = student.vlm.model.language_model.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _m, _a, kwargs: seen.update(kwargs), with_kwargs=True
    )
    answers = student.answers.encode(batch.future, batch.status)
    student(batch, answers, allow_table(1))  # a mask, so that padding stays before each row
    handle.remove()
    prompt = student.prompt(batch)
    ids = torch.cat((prompt.data.ids, torch.zeros_like(answers[:, :-1])), 1)
    there = torch.cat((prompt.segments != Segment.PAD, torch.ones_like(answers[:, :-1]).bool()), 1)
    expected, _ = student.vlm.model.get_rope_index(  # type: ignore[operator, union-attr]
        ids,
        mm_token_type_ids=(ids == student.vlm.config.image_token_id).int(),  # type: ignore[union-attr]
        image_grid_thw=prompt.data.vision["image_grid_thw"],
        attention_mask=there.long(),
    )
    assert torch.equal(seen["position_ids"], expected)
    assert (expected[0] != expected[1]).any()


def sft_model(student: base.Student) -> SFTModel:
    """With adapters for the toy targets."""
    statistics = {k: Statistics(torch.zeros(c), torch.ones(c)) for k, c in CHANNELS.items()}
    return SFTModel(student, CHANNELS, 16, statistics)


@pytest.mark.parametrize("answers", ["motion", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trains_a_step_of_each_stage(family: str, answers: str) -> None:
    """Every trained weight gets a gradient, every frozen one stays, and both losses fall."""
    student = hf_student(family, text_answers() if answers == "text" else None, gradient_checkpointing=True)
    model, batch = sft_model(student).train(), batch_of(2)
    if answers == "text":
        batch = replace(batch, future=batch.future[:, :2])
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for stage, weights in ((1, LossWeights(wm=1, geo=1, answer=0.1)), (2, LossWeights(wm=0.1, geo=0.1, answer=1))):
        losses = []
        for _ in range(3):
            loss, parts = model(batch, stage, weights)
            optimiser.zero_grad()
            loss.backward()
            silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert not silent
            assert student.latents.inputs.grad is not None
            assert student.latents.inputs.grad.abs().sum(1).min() > 0
            optimiser.step()
            losses.append(loss.item())
            assert {"answer", "wm_cosine", "wm_smooth_l1", "geo_cosine", "geo_smooth_l1"} < parts.keys()
        assert losses[-1] < losses[0]
    assert frozen
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for on in (False, True):
        model, batch = sft_model(hf_student("internvl", gradient_checkpointing=on)).train(), batch_of(2)
        torch.manual_seed(0)
        for adapter in model.adapters.modules():
            if isinstance(adapter, torch.nn.Linear):
                torch.nn.init.normal_(adapter.weight, std=0.1)
                torch.nn.init.zeros_(adapter.bias)
        loss, _ = model(batch, 1, LossWeights(wm=1, geo=1, answer=1))
        loss.backward()
        gradients.append({n: p.grad for n, p in model.student.vlm.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-7, rtol=1e-5)


def test_weights_of_two_dtypes_are_not_sharded_together() -> None:
    """FSDP2 would say so in the first step, after everything was loaded."""
    half, processor = vlm("internvl").to(torch.bfloat16), image_processor("internvl")
    config = HFConfig.model_validate({"model": "internvl", "dtype": "bfloat16"})
    student = HFStudent(half, tokenizer(), processor, config, motion_answers(), COUNTS)
    with pytest.raises(ConfigError, match=r"torch.bfloat16 and torch.float32 are trained together"):
        distributed.shard(student, student.blocks, (), ParallelConfig(mode="fsdp"), torch.device("cpu"), torch.bfloat16)
    distributed.shard(student, student.blocks, (), ParallelConfig(mode="ddp"), torch.device("cpu"), torch.bfloat16)


def test_low_ranks_of_a_bfloat16_model_take_small_steps() -> None:
    """GRPO's learning rate, 2e-6, is far below the spacing of bfloat16 about a usual weight."""
    pytest.importorskip("peft")
    config = HFConfig.model_validate({"model": "internvl", "dtype": "bfloat16", "lora": {"rank": 2}})
    half, processor = vlm("internvl").to(torch.bfloat16), image_processor("internvl")
    student = HFStudent(half, tokenizer(), processor, config, motion_answers(), COUNTS).eval()
    low = {n: p for n, p in student.named_parameters() if "lora_" in n}
    for parameter in low.values():
        torch.nn.init.normal_(parameter, std=0.02)
    before = {n: p.detach().clone() for n, p in low.items()}
    optimiser, batch = torch.optim.AdamW(low.values(), lr=2e-6, weight_decay=0.0), batch_of(2)
    with torch.autocast("cpu", torch.bfloat16):
        answers = student.answers.encode(batch.future, batch.status)
        student.logp(batch, answers, allow_table(2)).sum().backward()
    optimiser.step()
    for name, parameter in low.items():
        moved = (parameter - before[name])[parameter.grad != 0]
        assert moved.numel() > 0
        assert (moved != 0).all(), name
    assert next(p for n, p in student.vlm.named_parameters() if "lora_" not in n).dtype is torch.bfloat16


def test_weights_in_bfloat16_have_float32_masters(shards: str, tmp_path: Path) -> None:
    """Their steps are those of float32 weights with the same gradients; killed and resumed, the same bits come out."""
    models = [torch.nn.Linear(6, 5).to(torch.bfloat16) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].float()
    optimisers = [make_optimiser(model, OptimiserConfig()) for model in models]
    for _ in range(5):
        for half, whole in zip(*(model.parameters() for model in models), strict=True):
            half.grad = torch.randn_like(half)
            whole.grad = half.grad.float()
        for optimiser in optimisers:
            set_rate(optimiser, 2e-6)
            optimiser.step()
    for half, whole in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(optimisers[0].state[half]["master"], whole)
        assert torch.equal(half, whole.to(torch.bfloat16))
    folder = tmp_path / "model"
    for part in (vlm("internvl"), tokenizer(), image_processor("internvl")):
        part.save_pretrained(folder)  # type: ignore[operator, union-attr]
    changes: dict[str, Any] = {
        "student": {"kind": "hf", "model": str(folder), "dtype": "bfloat16"}, "dtype": "bfloat16", "save_every": 1,
        "stages": [{"stage": 2, "steps": 3, "lr": 1e-4}], "stream": {"batch_size": 2, "threads": 1},
    }  # fmt: skip
    runs = [SFT(recipe(shards, tmp_path / name, **changes), CPU, log=lambda text: None) for name in ("a", "b")]
    runs[0].fit()
    runs[1].fit(until=2)
    again = SFT(recipe(shards, tmp_path / "b", **changes), CPU, log=lambda text: None)
    assert again.step == 2
    again.fit()
    step = Path("checkpoints", "step_00000003")
    assert_same(tmp_path / "a" / step, tmp_path / "b" / step)
    found = tensors_of(tmp_path / "a" / step)
    masters = {n: value for n, value in found.items() if n.endswith(".master")}
    assert masters
    for name, master in masters.items():
        weight = found[name.replace("optimiser.", "model.").removesuffix(".master")]
        assert weight.dtype is torch.bfloat16
        assert torch.equal(weight, master.to(torch.bfloat16))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_recomputed_in_eval_mode_too(family: str) -> None:
    """GRPO has gradients in eval mode; sampling keeps its cache."""
    student, batch = hf_student(family, gradient_checkpointing=True).eval(), batch_of(2)
    calls = []
    student.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    answers = student.answers.encode(batch.future, batch.status)
    student.logp(batch, answers, allow_table(2)).sum().backward()
    assert len(calls) == 2
    assert not any(module.training for module in student.modules())
    student.sample(batch, allow_table(2), temperature=0)
    assert len(calls) == 2 + student.answers.length


def test_lora_trains_only_the_low_ranks_and_what_is_new() -> None:
    pytest.importorskip("peft")
    model = sft_model(hf_student("qwen3_vl", lora={"rank": 2, "alpha": 4.0}))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    inside = {n for n in trained if ".vlm." in n}
    assert inside
    assert all("lora_" in n and "language_model" in n for n in inside)
    assert {"student.latents.inputs", "student.head.table_in"} <= trained
    loss, _ = model(batch_of(1), 1, LossWeights(wm=1, geo=1, answer=0.1))
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n in trained)


def test_text_answers_of_a_tokenizer_round_trip() -> None:
    answers, batch = text_answers(), batch_of(3)
    future = batch.future[:, :2]
    decoded, parsed = answers.decode(answers.encode(future, batch.status), batch.status)
    assert parsed.all()
    assert (decoded - future)[..., :2].abs().max() < 0.051


@pytest.mark.parametrize("family", ["internvl", "qwen3_vl"])
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}])
def test_a_run_from_a_folder_on_shards(family: str, lora: object, shards: str, tmp_path: Path) -> None:
    """Weights, tokenizer and image processor from disk, both stages of the real loop, and the policy that it leaves."""
    folder = tmp_path / "model"
    for part in (vlm(family), tokenizer(), image_processor(family)):
        part.save_pretrained(folder)  # type: ignore[operator, union-attr]
    student = {"kind": "hf", "model": str(folder), "lora": lora}
    stages = [{"stage": 1, "steps": 1, "lr": 1e-3}, {"stage": 2, "steps": 1, "lr": 1e-3}]
    config = recipe(shards, tmp_path / "run", student=student, stages=stages, stream={"batch_size": 2, "threads": 1})
    run = SFT(config, torch.device("cpu"), log=lambda text: None)
    held = run.held_batches()
    run.check_mask(held[0])
    run.fit()
    policy = load_policy(tmp_path / "run" / "stage_2.pt")
    own = run.model.student.eval().sample(held[0], allow_table(2), temperature=0)
    loaded = policy.student.sample(held[0], allow_table(2), temperature=0)
    assert torch.equal(own.tokens, loaded.tokens)
    assert torch.equal(own.logp, loaded.logp)
    stored = checkpoint.load(tmp_path / "run" / "stage_2.pt")["student"]
    frozen = {n for n, p in run.model.student.named_parameters() if not p.requires_grad}
    assert frozen
    assert not frozen & stored.keys()
    assert any("lora_" in name for name in stored) == (lora is not None)
