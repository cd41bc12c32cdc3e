"""Clips: the mapping tables, lengths, padding, roles."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards_schema.errors import ConfigError, SampleError
from teachers.cosmos.frames import FUTURE, HISTORY, LAYOUTS, PAD, Clip, Layout, clip_of, latent_count, latent_roles
from teachers.testing import synthetic_scene

FUTURE_STEPS = (1, 2, 3, 4, 5, 6, 7, 8)
TABLE = [
    # layout, frames before the window, factor, steps, valid, roles
    ("A", 0, 8, (0, *FUTURE_STEPS), (1,) * 9, (HISTORY, FUTURE)),
    ("A", 0, 4, (0, *FUTURE_STEPS), (1,) * 9, (HISTORY, FUTURE, FUTURE)),
    ("B", 1, 4, (-4, -3, -2, -1, 0, *FUTURE_STEPS), (1,) * 13, (HISTORY, HISTORY, FUTURE, FUTURE)),
    ("B", 0, 4, (-3, -3, -2, -1, 0, *FUTURE_STEPS), (0,) + (1,) * 12, (PAD, HISTORY, FUTURE, FUTURE)),
    ("C", 0, 8, (-3,) * 6 + (-2, -1, 0, *FUTURE_STEPS), (0,) * 5 + (1,) * 12, (PAD, HISTORY, FUTURE)),
    ("C", 1, 8, (-3,) * 6 + (-2, -1, 0, *FUTURE_STEPS), (0,) * 5 + (1,) * 12, (PAD, HISTORY, FUTURE)),
    ("C", 0, 4, (-3,) * 6 + (-2, -1, 0, *FUTURE_STEPS), (0,) * 5 + (1,) * 12, (PAD, PAD, HISTORY, FUTURE, FUTURE)),
    ("D", 1, 4, (-4, -3, -2, -1, 0), (1,) * 5, (HISTORY, HISTORY)),
    ("D", 0, 4, (-3, -3, -2, -1, 0), (0, 1, 1, 1, 1), (PAD, HISTORY)),
]


@pytest.mark.parametrize(("layout", "before", "factor", "steps", "valid", "roles"), TABLE)
def test_the_table_of_the_spec(
    layout: str,
    before: int,
    factor: int,
    steps: tuple[int, ...],
    valid: tuple[int, ...],
    roles: tuple[int, ...],
) -> None:
    clip = clip_of(synthetic_scene(before=before), LAYOUTS[layout], "CAM_F0")
    assert clip.steps == steps
    assert clip.valid == tuple(map(bool, valid))
    assert latent_roles(clip, factor) == roles


@pytest.mark.parametrize("layout", ["B", "D"])
def test_layouts_b_and_d_are_not_whole_for_a_factor_of_eight(layout: str) -> None:
    with pytest.raises(ConfigError):
        latent_count(len(LAYOUTS[layout].steps), 8)


def test_images_are_asked_for_once_and_put_back_in_place() -> None:
    clip = clip_of(synthetic_scene(), LAYOUTS["C"], "CAM_F0")
    assert clip.distinct == (-3, -2, -1, 0, *FUTURE_STEPS)
    assert tuple(clip.distinct[i] for i in clip.index) == clip.steps


def test_twelve_frames_are_refused_with_the_lengths_around() -> None:
    with pytest.raises(ConfigError, match=r"12 frames is not 1 \+ 8n.*9 or 17"):
        latent_count(12, 8)
    with pytest.raises(ConfigError, match=r"12 frames is not 1 \+ 4n.*9 or 13"):
        latent_count(12, 4)
    with pytest.raises(ConfigError, match="valid lengths are 1"):
        latent_count(0, 4)


@given(st.integers(1, 200), st.sampled_from([4, 8]))
def test_a_length_is_either_whole_or_refused(frames: int, factor: int) -> None:
    if (frames - 1) % factor == 0:
        assert latent_count(frames, factor) == 1 + (frames - 1) // factor
    else:
        with pytest.raises(ConfigError) as caught:
            latent_count(frames, factor)
        below, above = (int(word) for word in str(caught.value).split(" are ")[1].split(" or "))
        assert below < frames < above
        assert latent_count(above, factor) - latent_count(below, factor) == 1


@pytest.mark.parametrize("layout", ["A", "B", "C"])
def test_a_scene_without_future_cannot_be_taught_it(layout: str) -> None:
    with pytest.raises(SampleError) as caught:
        clip_of(synthetic_scene(future=0), LAYOUTS[layout], "CAM_F0")
    assert caught.value.code == "missing_frame"
    assert clip_of(synthetic_scene(future=0), LAYOUTS["D"], "CAM_F0").steps == (-3, -3, -2, -1, 0)


def test_a_scene_with_short_history_is_refused_not_padded() -> None:
    with pytest.raises(SampleError) as caught:
        clip_of(synthetic_scene(history=3, before=0), LAYOUTS["D"], "CAM_F0")
    assert caught.value.code == "missing_frame"


def test_a_missing_camera_is_refused_but_the_optional_frame_falls_back() -> None:
    scene = synthetic_scene(before=1)
    blind = dataclasses.replace(scene.before[0], cameras={})
    clip = clip_of(dataclasses.replace(scene, before=(blind,)), LAYOUTS["D"], "CAM_F0")
    assert (clip.steps, clip.valid) == ((-3, -3, -2, -1, 0), (False, True, True, True, True))
    window = (*scene.frames[:3], dataclasses.replace(scene.current, cameras={}), *scene.frames[4:])
    with pytest.raises(SampleError) as caught:
        clip_of(dataclasses.replace(scene, frames=window), LAYOUTS["D"], "CAM_F0")
    assert caught.value.code == "missing_camera"


def test_repeated_tail_frames_pad_and_a_padded_group_has_no_future() -> None:
    clip = clip_of(synthetic_scene(), Layout((0, 1, 2, 3, 4, 4, 4, 4, 4)), "CAM_F0")
    assert clip.valid == (True,) * 5 + (False,) * 4
    assert latent_roles(clip, 4) == (HISTORY, FUTURE, PAD)


def test_a_group_with_one_future_frame_is_future() -> None:
    clip = Clip((-4, -3, -2, -1, 1), (True,) * 5)
    assert latent_roles(clip, 4) == (HISTORY, FUTURE)
    # a padded copy of a future frame still shows the future
    assert latent_roles(Clip((-3, -2, -1, 0, 1), (True, True, True, True, False)), 4) == (HISTORY, FUTURE)


def test_steps_must_not_decrease() -> None:
    with pytest.raises(ConfigError, match="never decrease"):
        Layout((0, 2, 1))
