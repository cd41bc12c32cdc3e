"""The tiny student obeys its mask exactly, and every check of that can fail."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.trainer_toys import (
    a_group_of_answers_stands_behind_one_prompt,
    a_group_shares_the_pass_over_its_prompt,
    batch_of,
    motion_answers,
    student_needs_no_mask_in_stage_2,
    tiny_student,
)
from trainer.answers.text import TextAnswers
from trainer.batch import Batch
from trainer.leaks import LeakError, check, cut, faults, influence
from trainer.segments import CONTENT, Segment, allow_table
from trainer.students import base
from trainer.students.tiny import TinyStudent


def setup(seed: int = 0) -> tuple[TinyStudent, Batch, torch.Tensor]:
    student, batch = tiny_student(seed=seed).eval(), batch_of(2)
    return student, batch, student.answers.encode(batch.future, batch.status)


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_are_exactly_zero_where_forbidden_and_nowhere_else(stage: int) -> None:
    student, batch, answers = setup()
    check(student, batch, answers, allow_table(stage))
    measured = influence(student, batch, answers, allow_table(stage))
    forbidden = [(Segment.IMAGE, Segment.TEXT), (Segment.WM, Segment.GEO), (Segment.GEO, Segment.ANSWER)]
    if stage == 1:
        forbidden += [(Segment.TEXT, Segment.IMAGE), (Segment.GEO, Segment.WM)]
        assert measured[Segment.ANSWER, Segment.IMAGE] > 0  # through the latents, and only through them
    for q, k in forbidden:
        assert measured[q, k] == 0
    cut_off = influence(student, batch, answers, cut(allow_table(1)))
    assert cut_off[Segment.ANSWER, Segment.IMAGE] == 0
    assert cut_off[Segment.ANSWER, Segment.TEXT] > 0


def test_after_the_cut_pixels_change_nothing_bitwise() -> None:
    student, batch, answers = setup()
    other = batch_of(2, seed=5)
    swapped = Batch(batch.tokens, other.images, batch.status, batch.command, batch.future, batch.targets)
    for table, same in ((cut(allow_table(1)), True), (allow_table(1), False), (cut(allow_table(2)), False)):
        with torch.no_grad():
            before, after = student(batch, answers, table), student(swapped, answers, table)
        assert torch.equal(before.logits, after.logits) == same
        assert not torch.equal(before.latents["wm"], after.latents["wm"])


LOWER = [(q, k) for q in CONTENT for k in CONTENT if k < q]


@pytest.mark.parametrize(("q", "k"), LOWER, ids=lambda s: s.name.lower())
@pytest.mark.parametrize("stage", [1, 2])
def test_flipping_one_cell_is_found(stage: int, q: Segment, k: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student of one layer runs under a table with one cell flipped; the check is told the right one."""
    student, batch, table = tiny_student(depth=1).eval(), batch_of(2), allow_table(stage)
    answers = student.answers.encode(batch.future, batch.status)
    check(student, batch, answers, table)
    right = base.attention_mask

    def mutated(segments: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        table = table.clone()
        table[q, k] = ~table[q, k]
        return right(segments, table)

    monkeypatch.setattr("trainer.leaks.attention_mask", mutated)
    with pytest.raises(LeakError, match=f"{q.name.lower()} <- {k.name.lower()}"):
        check(student, batch, answers, table)


def test_the_leak_through_text_needs_the_cut_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text -> image in stage 1 of a deep student: the answer's own row looks as before, but for the cut."""
    student, batch, answers = setup()
    leaky = allow_table(1)
    leaky[Segment.TEXT, Segment.IMAGE] = True
    measured = influence(student, batch, answers, leaky)
    row = [f for f in faults(measured, allow_table(1), 2) if f.startswith("answer")]
    assert not row
    measured = influence(student, batch, answers, cut(leaky))
    assert measured[Segment.ANSWER, Segment.IMAGE] > 0


def test_padding_on_the_left_or_after_the_end_changes_nothing() -> None:
    student = tiny_student(TextAnswers(steps=2)).eval()
    batch = batch_of(3)
    answers = student.answers.encode(batch.future[:, :2], batch.status)
    assert (answers == -1).any()
    with torch.no_grad():
        full = student(batch, answers, allow_table(1)).logits
        longest = int((answers >= 0).sum(1).max())
        short = student(batch, answers[:, :longest], allow_table(1)).logits
    valid = answers[:, :longest] >= 0
    torch.testing.assert_close(full[:, :longest][valid], short[valid], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["motion", "text"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_sampled_log_probability_is_the_teacher_forced_one(kind: str, stage: int, temperature: float) -> None:
    """Prefill and decode with a cache under the 4D mask, against one full forward."""
    student = tiny_student(TextAnswers(steps=1) if kind == "text" else motion_answers()).eval()
    batch, table = batch_of(4), allow_table(stage)
    sampled = student.sample(batch, table, temperature=temperature, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        again = student.logp(batch, sampled.tokens, table, temperature)
    assert (again - sampled.logp).abs().max() < 1e-5
    assert sampled.tokens.shape == (4, student.answers.length)
    assert (sampled.logp[sampled.tokens < 0] == 0).all()


@pytest.mark.parametrize("kind", ["motion", "text"])
def test_a_group_shares_the_pass_over_its_prompt(kind: str) -> None:
    student = tiny_student(TextAnswers(steps=1) if kind == "text" else motion_answers()).eval()
    batch, table = batch_of(3), allow_table(1)
    a_group_shares_the_pass_over_its_prompt(student, batch, table)


@pytest.mark.parametrize("kind", ["motion", "text"])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_group_of_answers_stands_behind_one_prompt(kind: str, stage: int) -> None:
    student = tiny_student(TextAnswers(steps=1) if kind == "text" else motion_answers()).eval()
    a_group_of_answers_stands_behind_one_prompt(student, batch_of(3), allow_table(stage))


def test_stage_2_needs_no_mask() -> None:
    student, batch, _ = setup()
    student_needs_no_mask_in_stage_2(student, batch, close=1e-4)


def test_sampling_is_a_function_of_the_generator_and_greedy_of_nothing() -> None:
    student, batch, _ = setup()
    draw = [
        student.sample(batch, allow_table(2), group=8, generator=torch.Generator().manual_seed(s)).tokens
        for s in (0, 0, 1)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    greedy = [student.sample(batch, allow_table(2), temperature=0).tokens for _ in range(2)]
    assert torch.equal(*greedy)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_expected_answer_follows_the_probabilities_of_its_own_words(stage: int) -> None:
    """Decoded with a cache, against one full forward over the words that it went on with."""
    student, batch, table = tiny_student(motion_answers(expected=True)).eval(), batch_of(4), allow_table(stage)
    poses, parsed = student.answer(batch, table)
    following = student.answers.expectation(batch.status)
    words = student.sample(batch, table, choose=following).tokens
    with torch.no_grad():
        probabilities = student(batch, words, table).logits.softmax(-1)
    again = student.answers.expectation(batch.status)
    assert again is not None
    assert all(torch.equal(again(p.log()), words[:, i]) for i, p in enumerate(probabilities.unbind(1)))
    torch.testing.assert_close(again.trajectory, poses, atol=1e-4, rtol=0)
    assert parsed.all()
    greedy, _ = tiny_student(motion_answers()).eval().answer(batch, table)
    assert (greedy - poses).abs().max() > 0.1


@pytest.mark.parametrize("patch", [16, 32])
def test_a_patch_is_a_position(patch: int) -> None:
    student, batch = tiny_student(image=(64, 32), patch=patch).eval(), batch_of(2, size=(64, 32))
    segments = student.prompt(batch).segments
    assert int((segments == Segment.IMAGE).sum(1)[0]) == (64 // patch) * (32 // patch)
    answers = student.answers.encode(batch.future, batch.status)
    check(student, batch, answers, allow_table(1))


def test_samples_follow_the_softmax() -> None:
    """Frequencies of the first token of 4000 draws lie within four standard errors of the probabilities."""
    student, batch, _ = setup()
    one = batch[0:1]
    probabilities = student(one, torch.zeros(1, 4, dtype=torch.long), allow_table(1)).logits[0, 0].softmax(-1)
    drawn = student.sample(one, allow_table(1), group=4000, generator=torch.Generator().manual_seed(0)).tokens[:, 0]
    frequency = torch.bincount(drawn, minlength=len(probabilities)) / 4000
    error = (probabilities * (1 - probabilities) / 4000).sqrt()
    assert ((frequency - probabilities).abs() < 4 * error + 1e-3).all()


def test_align_layer_is_configurable() -> None:
    batch = batch_of(1)
    answers = motion_answers().encode(batch.future, batch.status)
    with torch.no_grad():
        deep, shallow = (tiny_student(align_layer=n).eval()(batch, answers, allow_table(1)) for n in (-1, 1))
    assert torch.equal(deep.logits, shallow.logits)
    assert not torch.allclose(deep.latents["wm"], shallow.latents["wm"])
    with pytest.raises(Exception, match="align_layer"):
        tiny_student(align_layer=7)
