"""Questions as one more answer: what is read, said and masked; training beside drives; a policy that is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trainer.leaks
from pipeline.reading.reader import Dataset
from questions.controls import said
from questions.units import Prompt
from shards_schema.errors import ConfigError, MissingFileError, SampleError
from tests.committed import commit
from tests.questions_toys import prompt, write_units
from tests.toys import ToySource, ToyTeacher, write_images
from tests.trainer.shard_toys import recipe
from tests.trainer.trainer_toys import COUNTS, STILL, assert_same, batch_of, motion_answers, tiny_student
from trainer import checkpoint
from trainer.answers.words import Words
from trainer.asked import WAYS, ask
from trainer.batch import Batch, collate
from trainer.build import load_policy, make_words
from trainer.data import DataConfig
from trainer.evaluate import zeroed_latents
from trainer.leaks import LeakError, check, cut
from trainer.losses import alignment, alignment_known
from trainer.questions import QuestionBatches, QuestionReader
from trainer.segments import Segment, allow_table
from trainer.sft import SFT
from trainer.splits import logs_of
from trainer.students.tiny import TinyStudent, told

CPU = torch.device("cpu")
SIDES = ("The red car", "The blue bus", "Almost the same")


def question(token: str, number: int = 0, **given: Any) -> Prompt:
    """A question whose text says its answer: who reads it is right, and who does not is right half of the time."""
    answer = SIDES[number % 2]
    values: dict[str, Any] = {
        "unit": f"depth-{token}-{number}", "token": token, "log": token[:8], "split": "train", "views": ("cam_f0",),
        "size": (48, 32), "question": f"Is it {answer.lower()} in {number} m?", "benchmark": "toy", **given,
    }  # fmt: skip
    return prompt("depth", SIDES, answer, **values)


def training(shards: str, **given: Any) -> list[Prompt]:
    """Two questions about each scene of the logs that are trained on."""
    dataset = Dataset(shards, columns=["samples", "toy"])
    held = SFT(recipe(shards, "/nowhere"), CPU, log=lambda text: None).held_tokens
    return [question(t, n, **given) for t in dataset.tokens("samples", "toy") if t not in held for n in (0, 1)]


@pytest.fixture(scope="module")
def units(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_units(tmp_path_factory.mktemp("units") / "train.jsonl", training(shards))


def start(shards: str, out: Path, units: Path, questions: dict[str, Any] | None = None, **changes: Any) -> SFT:
    asked = {"units": str(units), **(questions or {})}
    return SFT(recipe(shards, out, questions=asked, **changes), CPU, log=lambda text: None)


def asking(words: Words, seed: int = 0) -> TinyStudent:
    """`tiny_student` with words, in eval mode."""
    config, answers = tiny_student().config, motion_answers()
    torch.manual_seed(seed)
    return TinyStudent(config, answers, COUNTS, views=1, history=4, words=words).eval()


def asking_batch(count: int = 2) -> tuple[Batch, Words]:
    """Questions about random pictures, the first of which is the longest; and the words of a tiny student."""
    drives = batch_of(count)
    asked = tuple(question(t, i, question="Is it? " * (count - i)) for i, t in enumerate(drives.tokens))
    made = make_words(tiny_student().config, asked)
    assert made is not None
    return replace(drives, asked=asked), made


def test_pieces_are_read_and_said() -> None:
    texts = ["<answer>Between 18 meters and 25 meters</answer>", "[718, 524.5]", "Où est l'auto? (a_b)", "A  b\nc"]
    words = Words.fit(texts)
    encoded = words.encode(texts)
    assert encoded.shape == (4, max(int((row >= 0).sum()) for row in encoded))
    assert words.decode(encoded) == [*texts[:3], "A b\nc"]  # of blanks in a row one is kept
    assert words.decode(Words.fit(texts[:1]).encode(["Between 1 and 9 apes"]).clamp(1, 1))[0].startswith("\ufffd")
    with pytest.raises(ConfigError, match="a text has 3 tokens, and 2 is the most"):
        words.encode(["1 2"], length=2)
    assert words.decode(torch.tensor([[0, -1, -1]])) == [""]


def test_drives_are_what_they_were_and_draw_what_they_drew() -> None:
    """A student that can be asked has the weights, and the answers to drives, of one that cannot."""
    batch, words = asking_batch()
    plain, asked = tiny_student(seed=3).eval(), asking(words, seed=3)
    theirs = asked.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in plain.state_dict().items())
    drives = replace(batch, asked=())
    answers = plain.answers.encode(drives.future, drives.status)
    with torch.no_grad():
        assert torch.equal(plain(drives, answers, allow_table(1)).logits, asked(drives, answers, allow_table(1)).logits)
    with pytest.raises(ConfigError, match="this policy cannot be asked"):
        plain.sample(batch, allow_table(1))


@pytest.mark.parametrize("stage", [1, 2])
def test_masks_hold_for_questions(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, words = asking_batch()
    student = type(tiny_student())(
        tiny_student().config, tiny_student().answers, COUNTS, views=1, history=4, words=words
    )
    assert words is not None
    answers = words.encode([said(q.answer) for q in batch.asked])
    one = student.prepare(batch)
    check(student, one[1:2], answers[1:2], allow_table(stage))
    assert (student.prompt(batch).segments == Segment.PAD).any()
    swapped = replace(one, images=batch_of(2, seed=7).images)
    status = replace(one, status=batch.status + 1, command=(batch.command + 1) % 4)
    with torch.no_grad():
        logits = student(one, answers, allow_table(stage)).logits
        assert torch.equal(student(status, answers, allow_table(stage)).logits, logits)  # nothing is told of the car
        assert not torch.equal(student(swapped, answers, allow_table(stage)).logits, logits)
        each = [student(one[i : i + 1], answers[i : i + 1], allow_table(stage)).logits for i in range(2)]
        torch.testing.assert_close(torch.cat(each), logits, atol=1e-5, rtol=0)
        if stage == 1:
            closed = student(one, answers, cut(allow_table(1))).logits
            assert torch.equal(student(swapped, answers, cut(allow_table(1))).logits, closed)
            with zeroed_latents(student):
                nothing = student(one, answers, allow_table(1)).logits
                assert torch.equal(student(swapped, answers, allow_table(1)).logits, nothing)
    right = trainer.leaks.attention_mask

    def leaky(segments: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        wrong = table.clone()
        wrong[Segment.GEO, Segment.WM] = ~wrong[Segment.GEO, Segment.WM]
        return right(segments, wrong)

    monkeypatch.setattr("trainer.leaks.attention_mask", leaky)
    with pytest.raises(LeakError, match="geo <- wm"):
        check(student, one[1:2], answers[1:2], allow_table(stage))


def test_what_is_sampled_is_what_is_said_in_one_pass() -> None:
    """With a cache, in words, with prompts of different length; and no longer than is asked for."""
    batch, words = asking_batch(3)
    student = type(tiny_student())(
        tiny_student().config, tiny_student().answers, COUNTS, views=1, history=4, words=words
    )
    student.eval()
    table = allow_table(1)
    sampled = student.sample(batch, table, group=2, generator=torch.Generator().manual_seed(1))
    places = (0, 0, 1, 1, 2, 2)
    with torch.no_grad():
        again = student.logp(batch.take(torch.tensor(places), places), sampled.tokens, table)
    assert (again - sampled.logp).abs().max() < 1e-5
    assert student.sample(batch, table, length=3).tokens.shape == (3, 3)


def test_a_sample_without_a_target_adds_nothing_to_the_alignment() -> None:
    """No loss and no gradient; not the loss of a target of zeros."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(4, 3, 5, generator=generator, requires_grad=True)
    target = torch.randn(4, 3, 5, generator=generator)
    target[1] = torch.nan
    found = alignment_known(predicted, target)
    there = [0, 2, 3]
    expected = alignment(predicted[there], target[there])
    assert found.cosine.item() == pytest.approx(0.75 * expected.cosine.item(), rel=1e-5)
    assert found.smooth_l1.item() == pytest.approx(0.75 * expected.smooth_l1.item(), rel=1e-5)
    zeros = alignment(predicted, target.nan_to_num())
    assert found.smooth_l1 < zeros.smooth_l1
    (found.cosine + found.smooth_l1).backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    assert predicted.grad[1].abs().max() == 0
    assert predicted.grad[there].abs().min() > 0
    nothing = alignment_known(predicted, torch.full_like(target, torch.nan))
    assert (nothing.cosine.item(), nothing.smooth_l1.item()) == (pytest.approx(0, abs=1e-6), 0)


def test_scenes_without_a_teachers_column_train_what_they_have(tmp_path: Path) -> None:
    """A column that lacks scenes: their questions are read, with targets that are no numbers."""
    write_images(tmp_path / "data", logs=3, frames=9)
    source = ToySource(str(tmp_path / "data"), logs=3, frames=9)
    commit(source, tmp_path / "out", [ToyTeacher(poison=f"{1:08x}{3:08x}")], shard_size=8, zarr=False)
    dataset = Dataset(str(tmp_path / "out"), columns=["samples", "toy"])
    lacking = {*dataset.tokens("samples")} - {*dataset.tokens("samples", "toy")}
    assert lacking
    config = recipe(str(tmp_path / "out"), tmp_path / "run")
    reader = QuestionReader(dataset, config.samples, config.targets)
    for token in dataset.tokens("samples"):
        targets = reader(question(token)).targets
        assert all(np.isnan(value).all() == (token in lacking) for value in targets.values())
    asked = [question(t, n) for t in dataset.tokens("samples") for n in (0, 1)]
    held = SFT(config, CPU, log=lambda text: None).held_tokens
    held_logs = {logs_of(dataset)[t] for t in held}
    asked = [q for q in asked if logs_of(dataset)[q.token] not in held_logs and q.token in lacking]
    assert asked
    only = write_units(tmp_path / "lacking.jsonl", asked)
    run = start(str(tmp_path / "out"), tmp_path / "run", only, stream={"batch_size": 2, "threads": 1})
    run.fit(until=2)  # the gradient of every step is finite, or it would have ended


def test_resumed_after_a_kill_it_ends_with_the_same_bits(shards: str, units: Path, tmp_path: Path) -> None:
    start(shards, tmp_path / "whole", units, {"share": 1.5}, keep=10).fit()
    start(shards, tmp_path / "killed", units, {"share": 1.5}).fit(until=4)
    again = start(shards, tmp_path / "killed", units, {"share": 1.5})
    assert again.step == 4
    again.fit()
    assert_same(tmp_path / "whole" / "stage_2.pt", tmp_path / "killed" / "stage_2.pt")


def test_the_questions_of_a_step_do_not_depend_on_who_shares_it(
    shards: str, units: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = start(shards, tmp_path, units)
    prompts = training(shards)

    def of_step(step: int, ranks: int, drives: int, accumulate: int) -> list[str]:
        monkeypatch.setattr("trainer.distributed.world_size", lambda: ranks)
        out = []
        for rank in range(ranks):
            monkeypatch.setattr("trainer.distributed.rank", lambda rank=rank: rank)
            made = QuestionBatches(
                prompts, run._read_question, run.model.student, drives=drives, share=1, accumulate=accumulate, seed=0
            )
            out += [q.unit for part in range(accumulate) for q in made._make(step * accumulate + part).asked]
        return sorted(out)

    for step in (0, 3, 9):
        alone = of_step(step, 1, 4, 1)
        assert alone == of_step(step, 2, 2, 1) == of_step(step, 1, 2, 2)
    epoch = sorted(u for step in range(len(prompts) // 5) for u in of_step(step, 1, 5, 1))
    assert epoch == sorted(q.unit for q in prompts)  # each once before any comes again


def test_it_learns_to_read_and_says_what_it_read(shards: str, units: Path, tmp_path: Path) -> None:
    """The text gives the answer away; who does not read it is right half of the time."""
    stages = [{"stage": 2, "steps": 60, "lr": 5e-3}]
    student = {"kind": "tiny", "width": 32, "depth": 2, "heads": 2, "image": [48, 32], "dropout": 0.0, **STILL}
    quiet = {"evaluate_every": 100, "save_every": 100, "log_every": 100, "evaluate_limit": 1}
    start(shards, tmp_path, units, {"share": 3}, stages=stages, student=student, **quiet).fit()
    policy = load_policy(tmp_path / "stage_1.pt")
    prompts = training(shards)
    reader = QuestionReader(Dataset(shards, columns=["samples"]), policy.config.samples)
    written = ask(policy, prompts, reader, list(WAYS))
    chosen = ask(policy, prompts, reader, ["stage_2"], choosing="likeliest")["stage_2"]
    assert {*chosen} <= {said(option) for option in SIDES}
    for texts in (written["stage_2"], written["hidden"], chosen):
        assert sum(text == said(p.answer) for text, p in zip(texts, prompts, strict=True)) > 0.9 * len(prompts)


def test_the_loss_of_questions_is_weighed_and_added(shards: str, units: Path, tmp_path: Path) -> None:
    run = start(shards, tmp_path, units)
    model, weights = run.model.eval(), run.config.stages[0].loss_weights
    drives = run.held_batches()[0]
    assert run._question_batches is not None
    asked = run._question_batches.at(0, 0)
    with torch.no_grad():
        alone, both = model(drives, 1, weights)[0], {w: model(drives, 1, weights, asked, w) for w in (1.0, 3.0)}
    more = both[1.0][1]["asked_loss"]
    assert both[1.0][0].item() == pytest.approx((alone + more).item(), rel=1e-5)
    assert both[3.0][0].item() == pytest.approx((alone + 3 * more).item(), rel=1e-5)


def test_what_may_not_be_trained_on_is_refused(shards: str, units: Path, tmp_path: Path) -> None:
    def refused(prompts: list[Prompt], match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            start(shards, tmp_path, write_units(tmp_path / "units.jsonl", prompts))

    prompts = training(shards)
    held = SFT(recipe(shards, tmp_path), CPU, log=lambda text: None).held_tokens[0]
    refused([*prompts, question(held, 0, split="evaluation")], "nothing may be trained on these")
    refused([*prompts, question(held)], "has units of 1 logs that this run holds out")
    gone = question("f" * 16, log=logs_of(Dataset(shards, columns=["samples"]))[held])
    refused([*prompts, gone], "has units of 1 logs that this run holds out")
    unseen = [question(prompts[0].token, views=("cam_l0",)), question("f" * 16)]
    before = prompt("moves", ("Yes", "No"), "Yes", token=prompts[0].token, split="train", unit="m", views=("cam_f0",))
    unseen += [before, before.model_copy(update={"side": 2, "answer": "No"})]  # a student sees one frame
    refused(unseen, "no question can be asked: unseen_view 1, no_scene 1, unseen_past 2")
    said_of: list[str] = []
    some = write_units(tmp_path / "units.jsonl", [*prompts, question(prompts[0].token, 9, views=("cam_l0",))])
    config = recipe(shards, tmp_path, questions={"units": str(some)})
    SFT(config, CPU, log=said_of.append)
    assert said_of == [f"{len(prompts)} questions of {some}, 1 not asked (unseen_view)"]


def test_a_policy_that_learnt_no_questions_has_no_words(shards: str, tmp_path: Path) -> None:
    SFT(recipe(shards, tmp_path), CPU, log=lambda text: None).fit()
    assert "words" not in checkpoint.load(tmp_path / "stage_2.pt")
    policy = load_policy(tmp_path / "stage_2.pt")
    reader = QuestionReader(Dataset(shards, columns=["samples"]), policy.config.samples)
    with pytest.raises(ConfigError, match=r"train one with questions.units=FILE"):
        ask(policy, training(shards)[:2], reader, ["stage_1"])


def test_surds_pictures_have_no_targets_and_train_the_answer(shards: str, tmp_path: Path) -> None:
    folder = tmp_path / "surds"
    (folder / "train").mkdir(parents=True)
    rng = np.random.default_rng(0)
    asked = []
    for i in range(6):
        name = f"train/{i}.webp"
        pixels = rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, lossless=True)
        asked.append(question(f"nuscenes_{i}", i, log=None, images=(name,), views=("CAM_FRONT",), benchmark="surds"))
        reader = QuestionReader(None, DataConfig(), surds=folder)
        assert np.array_equal(reader(asked[-1]).images[0].transpose(1, 2, 0), pixels)
        assert np.array_equal(reader.picture(asked[-1]), pixels)
        assert (QuestionReader(None, DataConfig(), surds=folder, grey=True)(asked[-1]).images == 128).all()
    run = start(shards, tmp_path / "run", write_units(tmp_path / "units.jsonl", asked), {"surds": str(folder)})
    batch = run._question_batches.at(0, 0)  # type: ignore[union-attr]
    assert all(value.isnan().all() for value in batch.targets.values())
    run.fit(until=2)
    (folder / "train/0.webp").write_bytes(b"no picture")
    with pytest.raises(SampleError, match="unit depth-nuscenes_0-0"):
        reader(asked[0])
    with pytest.raises(MissingFileError, match="there is no image"):
        reader(replace_image(asked[0], "train/9.webp"))
    with pytest.raises(ConfigError, match="SURDS has one picture"):
        QuestionReader(None, DataConfig(views=("cam_f0", "cam_l0")), surds=folder)
    with pytest.raises(ConfigError, match="give one of"):
        QuestionReader(None, DataConfig())


def replace_image(asked: Prompt, name: str) -> Prompt:
    return asked.model_copy(update={"images": (name,)})


def test_of_several_views_the_text_says_which(tmp_path: Path, shards: str) -> None:
    dataset = Dataset(shards, columns=["samples"])
    token = dataset.tokens("samples")[0]
    one = QuestionReader(dataset, DataConfig(image=(48, 32), steps=3))(question(token))
    assert one.question is not None
    assert one.question.question == question(token).question
    two = QuestionReader(dataset, DataConfig(image=(48, 32), steps=3, views=("cam_f0", "cam_f0")))(question(token))
    assert two.question is not None
    assert told(two.question).startswith("Of pictures 1 to 2, about 1: Is it the red car in 0 m?")
    assert collate([one]).asked == (one.question,)
