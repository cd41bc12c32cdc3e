"""The counted operations against the real networks as they run, and against the published figures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from teachers import registry
from teachers.flops import counted, flops_of
from teachers.vggt.config import VGGTConfig
from teachers.vggt.network import VGGTNetwork
from teachers.vggt.teacher import VGGTTeacher
from teachers.weights import WeightsConfig

RANDOM = WeightsConfig(random=0)
VIEWS = ["CAM_F0", "CAM_L0", "CAM_R0"]


def tera(kind: str, **fields: Any) -> float:
    """TFLOP a scene of a teacher with random weights."""
    count = flops_of(registry.build(kind, {"weights": {"random": 0}, **fields}))
    assert count is not None
    return count / 1e12


@pytest.mark.parametrize("fields", [{}, {"layers": [1], "heads": []}, {"layers": [1], "heads": ["camera"]}])
def test_vggt_part_by_part_is_what_its_forward_runs(fields: dict[str, Any]) -> None:
    config = VGGTConfig.model_validate({"weights": RANDOM, "network": "tiny", "width": 154, "pools": {}, **fields})
    built = VGGTNetwork(config.built).requires_grad_(False)
    images = torch.zeros(1, config.frames, 3, config.image_height, config.width)
    assert counted(lambda: built(images, config.layer_indices)) == flops_of(VGGTTeacher(config))


def test_vggt_runs_no_layer_that_nothing_reads() -> None:
    fields = {"weights": RANDOM, "network": "tiny", "width": 154, "pools": {}, "heads": []}
    one, two = (tera("vggt", **{**fields, "layers": [last]}) for last in (1, 2))
    assert one < two


def test_vggt_at_its_published_size() -> None:
    tokens = tera("vggt", views=["CAM_F0"], heads=[])
    assert tokens == pytest.approx(1.598, abs=1e-3)
    assert tera("vggt", views=["CAM_F0"]) - tokens == pytest.approx(0.170 + 0.002, abs=1e-3)  # depth, camera head
    assert tera("vggt", views=VIEWS) == pytest.approx(5.669, abs=1e-3)


@pytest.mark.parametrize(
    ("model", "layout", "published"),
    [("cv8x8x8", "A", 0.57), ("cv8x8x8", "C", 0.88), ("cv4x8x8", "B", 0.77), ("wan", "A", 6.91)],
)
def test_a_vaes_encoder_at_its_published_size(model: str, layout: str, published: float) -> None:
    found = tera("cosmos", model=model, layout=layout, size=[512, 288], pool=None)
    assert found == pytest.approx(published, abs=0.005)


def test_predict_is_its_vae_and_the_transformer_up_to_its_block() -> None:
    vae = tera("cosmos", model="wan", layout="B", pool=None)
    near, far = (tera("cosmos_predict", network="2b", block=block) - vae for block in (9, 19))
    assert far == pytest.approx(6.863, abs=0.001)
    assert 0 < 2 * near - far < 0.02, "before the blocks there is little"


def test_vjepa2() -> None:
    assert tera("vjepa2", network="vitl", views=VIEWS[:1]) == pytest.approx(0.183, abs=1e-3)
    assert tera("vjepa2", network="vitl", views=VIEWS[:2]) == pytest.approx(2 * 0.183, abs=1e-3)


def test_a_built_in_teacher_is_found_by_its_config(tmp_path: Path) -> None:
    assert set(registry.BUILT_IN) - {"pdm"} == {"vggt", "cosmos", "cosmos_predict", "vjepa2"}, "a kind nobody counts"
    for kind in ("vggt", "cosmos", "cosmos_predict", "vjepa2"):
        assert tera(kind, network="tiny") > 1e-6, kind
    assert flops_of(registry.build("pdm", {"maps_root": str(tmp_path)})) is None


def test_a_teacher_may_count_itself() -> None:
    own: Any = SimpleNamespace(flops=lambda: 42, config=None)
    assert flops_of(own) == 42
    unknown: Any = SimpleNamespace(config=SimpleNamespace())
    assert flops_of(unknown) is None
