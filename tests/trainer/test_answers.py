"""Both answer codecs: what is lost, what is exact, what fails and is told."""

from __future__ import annotations

import pytest
import torch

from shards_schema.errors import ConfigError
from tests.trainer.trainer_toys import STEPS, motion_answers, status_of, trajectories
from trainer.answers.geometry import compose, motions_of, wrap
from trainer.answers.kmeans import kmeans
from trainer.answers.motion import HEADING_METRES, MotionAnswers, MotionConfig
from trainer.answers.text import TextAnswers, parse_waypoints
from trainer.build import restore_answers
from trainer.students.tiny import TinyConfig


def test_motions_and_compose_are_inverse() -> None:
    future = trajectories(50)
    pose, back = torch.zeros(50, 3), []
    for motion in motions_of(future).unbind(1):
        pose = compose(pose, motion)
        back.append(pose)
    torch.testing.assert_close(torch.stack(back, 1), future, atol=1e-4, rtol=0)


def test_a_motion_is_in_the_frame_of_the_pose_before() -> None:
    future = torch.tensor([[[0.0, 0.0, torch.pi / 2], [0.0, 2.0, torch.pi / 2]]])
    torch.testing.assert_close(motions_of(future)[0, 1], torch.tensor([2.0, 0.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("relative", [True, False])
def test_motion_vocabulary_round_trips_its_own_words(relative: bool) -> None:
    answers = MotionAnswers.fit(trajectories(300), status_of(300), MotionConfig(size=32, relative=relative))
    tokens = torch.randint(0, 32, (20, 4), generator=torch.Generator().manual_seed(0))
    status = status_of(20)
    poses, parsed = answers.decode(tokens, status)
    assert parsed.all()
    again, _ = answers.decode(answers.encode(poses, status), status)
    torch.testing.assert_close(again, poses, atol=1e-4, rtol=0)


def test_relative_words_mean_what_is_added_to_going_on() -> None:
    answers = MotionAnswers(torch.tensor([[0.0, 0, 0], [0.5, 0, 0]]), 2)
    status = torch.zeros(1, 4, 7)
    status[0, -1, 3:5] = torch.tensor([6.0, 0.2])
    poses, _ = answers.decode(torch.tensor([[0, 1]]), status)
    torch.testing.assert_close(poses[0], torch.tensor([[3.0, 0.1, 0.0], [6.5, 0.2, 0.0]]))
    assert torch.equal(answers.encode(poses, status), torch.tensor([[0, 1]]))


def test_a_larger_vocabulary_loses_less_and_closed_loop_beats_open_loop() -> None:
    train, held = trajectories(1500, 1, 8), trajectories(200, 2, 8)
    still, seen = torch.zeros(1500, 4, 7), torch.zeros(200, 4, 7)
    lost = {}
    for size in (8, 64, 256):
        answers = MotionAnswers.fit(train, still, MotionConfig(size=size))
        decoded, _ = answers.decode(answers.encode(held, seen), seen)
        lost[size] = (decoded - held)[..., :2].norm(dim=-1).mean()
    assert lost[256] < lost[64] < lost[8]
    assert lost[256] < 0.25
    scale = torch.tensor([1.0, 1.0, HEADING_METRES])
    open_loop = torch.cdist(motions_of(held) * scale, answers.motions * scale).argmin(-1)
    drift = (answers.decode(open_loop, seen)[0] - held)[..., :2].norm(dim=-1).mean()
    assert lost[256] < 0.7 * drift


def test_the_vocabulary_is_a_function_of_data_and_seed() -> None:
    data, status = trajectories(300), status_of(300)
    a, b = (MotionAnswers.fit(data, status, MotionConfig(size=16, seed=1)).motions for _ in range(2))
    assert torch.equal(a, b)
    with pytest.raises(ConfigError, match="distinct motions in the data, size is 16"):
        MotionAnswers.fit(torch.zeros(40, 4, 3), torch.zeros(40, 4, 7), MotionConfig(size=16))


def test_smoothing_is_a_distribution_that_peaks_at_the_right_token() -> None:
    answers = MotionAnswers.fit(trajectories(300), status_of(300), MotionConfig(size=32, smoothing=0.3))
    assert answers.smoothing is not None
    torch.testing.assert_close(answers.smoothing.sum(-1), torch.ones(32))
    assert torch.equal(answers.smoothing.argmax(-1), torch.arange(32))


def test_kmeans_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0, 0], [10, 0, 0], [0, 10, 0]])
    noise = 0.1 * torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    found = kmeans(centres.repeat(100, 1) + noise, 3, seed=0, iterations=20)
    assert torch.cdist(centres, found).min(1).values.max() < 0.1


@pytest.mark.parametrize("digits", [1, 2])
def test_text_round_trips_to_its_digits(digits: int) -> None:
    answers, future = TextAnswers(steps=4, digits=digits), trajectories(20)
    status = status_of(20)
    tokens = answers.encode(future, status)
    assert tokens.shape == (20, answers.length)
    assert ((tokens == answers.end).sum(1) == 1).all()
    decoded, parsed = answers.decode(tokens, status)
    assert parsed.all()
    assert (decoded - future)[..., :2].abs().max() <= 0.5 * 10**-digits + 1e-5


@pytest.mark.parametrize(
    "text",
    ["", "(1.0,2.0,0.1)", "(1.0,2.0,0.1) (1.0,2.0)", "(1.0,2.0,0.1)(1.0,2.0,0.1)", "(1.,2.0,0.1) (1.0,2.0,0.1)",
     "(--1,2,0) (1,2,0)", "(1,2,0) (1,2,0) (1,2,0)"],
)  # fmt: skip
def test_text_that_is_not_the_waypoints_does_not_parse(text: str) -> None:
    from trainer.answers.text import CHARACTERS

    answers = TextAnswers(steps=2)
    good = answers.encode(trajectories(1)[:, :2], status_of(1))
    bad = torch.full_like(good, -1)
    ids = [CHARACTERS.index(c) for c in text] + [len(CHARACTERS)]
    bad[0, : len(ids)] = torch.tensor(ids)
    endless = good.clone()
    endless[endless == answers.end] = 0
    decoded, parsed = answers.decode(torch.cat((good, bad, endless)), status_of(3))
    assert parsed.tolist() == [True, False, False]
    assert (decoded[1:] == 0).all()


@pytest.mark.parametrize(
    "text",
    ["(1.0,2.0,0.1) (3.0,-4.0,0.0)", "  (1.0, 2.0, 0.1) (3.0, -4.0, 0)\n", "(+1.0,+2.0,+0.1)\n( 3.0 , -4.0 , -0.0 )",
     "(1.0,2.0,0.1), (3.0,-4.0,0.00)", "(1.0,2.0,0.1),(3,-4,0)", "(1.0,2.0,0.1) (3.0,-4.0,0)<|im_end|>",
     "(1.0,2.0,0.1) (3.0,-4.0,0)</s> <|endoftext|><|endoftext|>\n",
     "<think>\nA car, at (9,9,9).\n</think>\n\n(1.0,2.0,0.1) (3.0,-4.0,0)", "It is red.</think>(1,2,0.1) (3,-4,0)"],
)  # fmt: skip
def test_the_usual_ways_to_write_the_same_answer(text: str) -> None:
    assert parse_waypoints(text, 2) == [[1, 2, 0.1], [3, -4, 0]]


@pytest.mark.parametrize(
    "text",
    ["Answer: (1,2,0) (3,4,0)", "(1,2,0) (3,4,0).", "(1,2,0) (3,4,0),", "(1,2,0) and (3,4,0)", "[(1,2,0), (3,4,0)]",
     "(1,2,0),,(3,4,0)", "(1,2,0)(3,4,0)", "(1;2;0) (3;4;0)", "(1,2) (3,4)", "(1,2,0,0) (3,4,0,0)", "(1e3,2,0) (3,4,0)",
     "(- 1,2,0) (3,4,0)", "(1,2,0) (3,4,0) (5,6,0)", "(1,2,0) (3,4,0)<|im_end|>more", "(nan,2,0) (3,4,0)",
     "(\u0661,2,0) (3,4,0)", "<think>(1,2,0) (3,4,0)", "(1,2,0) (3,4,0)</think>", "(1,2,0)</think> (3,4,0)"],
)  # fmt: skip
def test_what_is_beside_the_answer_makes_it_none(text: str) -> None:
    assert parse_waypoints(text, 2) is None


@pytest.mark.parametrize(
    "text",
    [
        "(" * 200_000,
        "(1,2,0) " * 2 + " " * 200_000 + "x",
        "(1,2,0) (3,4,0)" + "<|a" * 100_000,
        "(1,2,0" + " " * 200_000,
    ],
)
def test_a_long_answer_costs_its_length(text: str) -> None:
    """A model that says nonsense may say much of it; a pattern that backtracks would stand still here."""
    assert parse_waypoints(text, 2) is None


def test_a_trajectory_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most"):
        TextAnswers(steps=1).encode(torch.full((1, 1, 3), -1e9), status_of(1))


def test_the_expected_trajectory_of_a_policy_that_is_sure_is_what_its_tokens_mean() -> None:
    answers, status = motion_answers(expected=True), status_of(20)
    tokens = torch.randint(0, 16, (20, STEPS), generator=torch.Generator().manual_seed(3))
    following = answers.expectation(status)
    assert following is not None
    for step in range(STEPS):
        sure = torch.full((20, 16), -torch.inf).scatter(1, tokens[:, step : step + 1], 0.0)
        assert torch.equal(following(sure), tokens[:, step])
    torch.testing.assert_close(following.trajectory, answers.decode(tokens, status)[0], atol=1e-5, rtol=0)


def test_between_two_equal_ways_the_expected_one_is_the_middle_and_the_words_follow_it() -> None:
    words = torch.tensor([[1.0, 0.5, 0.0], [1.0, -0.5, 0.0], [3.0, 0.0, 0.0]])
    answers, status = MotionAnswers(words, 2, relative=False, expected=True), torch.zeros(1, 4, 7)
    following = answers.expectation(status)
    assert following is not None
    either = torch.tensor([[0.5, 0.5, 0.0]]).log()
    tokens = [following(either), following(either)]
    torch.testing.assert_close(following.trajectory[0], torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))
    assert sorted(int(t) for t in tokens) == [0, 1]  # the second word takes back what the first one was off


def test_regression_is_the_distance_of_the_expected_trajectory_and_teaches_it() -> None:
    status, future = status_of(6), trajectories(6)
    answers = motion_answers(regression=2.0)
    tokens = answers.encode(future, status)
    sure = torch.full((6, STEPS, 16), -1e4).scatter(2, tokens.unsqueeze(2), 0.0)
    decoded, _ = answers.decode(tokens, status)
    lost = answers.distance(sure, future, status)
    assert lost is not None
    error = torch.cat(((decoded - future)[..., :2], wrap((decoded - future)[..., 2:])), -1)
    torch.testing.assert_close(lost, 2 * error.abs().mean())
    logits = torch.zeros(6, STEPS, 16, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    found = []
    for _ in range(150):
        loss = answers.distance(logits, future, status)
        assert loss is not None
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        found.append(loss.item())
    assert found[-1] < 0.3 * lost.item() < found[0]  # between the words, nearer than any of them
    assert motion_answers().distance(logits, future, status) is None
    assert TextAnswers(STEPS).distance(logits, future, status) is None


def test_the_distance_is_of_metres_under_autocast_too() -> None:
    answers, status, future = motion_answers(regression=1.0), status_of(6), trajectories(6)
    logits = torch.randn(6, STEPS, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        low = answers.distance(logits, future, status)
    assert low is not None
    assert low == answers.distance(logits, future, status)


def test_what_a_checkpoint_keeps_makes_the_same_answers() -> None:
    answers = motion_answers(smoothing=0.2, regression=3.0, expected=True)
    state = answers.state()
    again = restore_answers(state, TinyConfig())
    assert isinstance(again, MotionAnswers)
    assert torch.equal(again.motions, answers.motions)
    assert (again.regression, again.expected) == (3.0, True)


def test_a_zero_has_no_sign() -> None:
    from trainer.answers.text import Written

    answers = TextAnswers(steps=2)
    future = torch.tensor([[[-0.004, -0.0, -0.0004], [-0.006, 1.0, -1e-9]]])
    (ids,) = answers.encode(future, status_of(1)).tolist()
    assert answers._decode(ids[: ids.index(answers.end)]) == "(0.00,0.00,0.000) (-0.01,1.00,0.000)"
    values = [-0.0, -0.004, 0.004, -0.5, float("-inf")]
    assert [f"{Written(v):.2f}" for v in values] == ["0.00", "0.00", "0.00", "-0.50", "-inf"]
    assert [f"{Written(v):+.1f}" for v in values[:4]] == ["+0.0", "+0.0", "+0.0", "-0.5"]
    assert [f"{Written(v)}" for v in (-0.0, -0.25)] == ["0.0", "-0.25"]
