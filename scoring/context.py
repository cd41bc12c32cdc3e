"""What the scorer needs to know of a scene, as plain arrays; and many scenes as one batch. Spec sections 4.4 and 4.8.

Everything lies in the ego frame at t0 (rear axle, x forward, y left), which costs nothing: all metrics are invariant,
and single precision then resolves a hundredth of a millimetre. `RewardContext.astype` stores the map, agents and
centerline so; states stay float64, since the simulator magnifies. Ragged arrays are padded only by `collate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from scoring.geometry import EdgeSet, oriented_boxes_meet
from scoring.rowwise import length
from scoring.traffic import Traffic
from scoring.vehicle import HALF_LENGTH, HALF_WIDTH, REAR_AXLE_TO_CENTRE, STATE_SIZE, STEPS
from shards_schema.errors import SampleError

Version = Literal["v1", "v2"]
"""``v1``: PDMS, NAVSIM 1.x. ``v2``: EPDMS, NAVSIM 2.x."""

AGENT_STEPS = {"v1": 51, "v2": 41}
"""10 Hz steps for which agents are known: v1 looks ahead a second past the path's end, v2 stops there."""

FILTERED = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
    "time_to_collision_within_bound",
    "lane_keeping",
)
"""The sub-scores of `RewardContext.human_zero`, in its order (progress and comfort of the human are 1 always)."""


class Layer(IntEnum):
    """What a polygon of the drivable map is."""

    ROADBLOCK = 0
    LANE = 1
    LANE_CONNECTOR = 2
    INTERSECTION = 3
    CARPARK = 4
    DRIVABLE_AREA = 5


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """M polygons, each of one or more rings (outlines and holes alike: inside is even-odd over all of them).

    Attributes:
        xy: [K, 2] metres, the vertices of all rings, no ring repeating its first.
        rings: int64 [R + 1], where each ring begins in `xy`.
        polygons: int64 [M + 1], where each polygon begins in the rings.
    """

    xy: NDArray[np.floating[Any]]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.polygons) - 1

    @classmethod
    def of(cls, polygons: Sequence[Sequence[NDArray[np.float64]]]) -> Polygons:
        """From rings [k, 2] of each polygon; a last vertex equal to the first is dropped."""
        rings = [r[:-1] if len(r) > 1 and (r[0] == r[-1]).all() else r for p in polygons for r in p]
        xy = np.concatenate(rings) if rings else np.zeros((0, 2))
        return cls(xy, _offsets([len(r) for r in rings]), _offsets([len(p) for p in polygons]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardContext:
    """One scene. N agents, M map polygons, R red-light areas, P centerline points, H past states.

    Attributes:
        token: the scene's id, for messages.
        version: which scorer it is for; T below is 51 for v1 and 41 for v2.
        timestamp_us: microseconds of t0.
        ego_state: float64 [11], `vehicle` order; its pose is zero.
        past_states: float64 [H, 11] at 10 Hz, oldest first, as the devkit resamples the human's last 1.5 s (which
            drops the samples at -0.1 and 0 s); v2 only, else [0, 11].
        agents_pose: [N, T, 3], box centre and heading at 10 Hz; zero where not valid.
        agents_valid: bool [N, T].
        agents_size: [N, 2], length and width [m].
        agents_is_agent: bool [N], vehicle, pedestrian or bicycle (else a static object).
        agents_stopped: bool [N], static, or slower than 0.05 m/s when first seen.
        map_polygons: M polygons within 100 m.
        map_layer: int64 [M], a `Layer` each.
        map_on_route: bool [M], a lane or lane connector of the route.
        light_polygons: R areas of lane connectors that are red at some step; v2 only.
        light_active: bool [R, 41].
        centerline: [P, 2], P >= 2.
        pdm_poses: float64 [41, 3], the reference of PDM-Closed, which the progress is normalised by.
        human_poses: float64 [F, 3] at 0.5 s, what the human drove; [0, 3] for a synthetic scene.
        pdm_progress: metres of progress of PDM-Closed times its multiplicative sub-scores; NaN until
            `references.complete` has computed it.
        human_zero: bool [6], which of `FILTERED` are 0 for the human; v2 only, all false without a human.
        traffic: what reactive traffic needs (`scoring.reactive`); None where the column was made without it.
        replayed: whether the agents are the log's; v2 then drops those that overlap the ego at t0.
    """

    token: str
    version: Version
    timestamp_us: int
    ego_state: NDArray[np.float64]
    past_states: NDArray[np.float64]
    agents_pose: NDArray[np.floating[Any]]
    agents_valid: NDArray[np.bool_]
    agents_size: NDArray[np.floating[Any]]
    agents_is_agent: NDArray[np.bool_]
    agents_stopped: NDArray[np.bool_]
    map_polygons: Polygons
    map_layer: NDArray[np.int64]
    map_on_route: NDArray[np.bool_]
    light_polygons: Polygons
    light_active: NDArray[np.bool_]
    centerline: NDArray[np.floating[Any]]
    pdm_poses: NDArray[np.float64]
    human_poses: NDArray[np.float64]
    pdm_progress: float = float("nan")
    human_zero: NDArray[np.bool_]
    traffic: Traffic | None = None
    replayed: bool = True

    def __post_init__(self) -> None:
        n, m, r = len(self.agents_pose), len(self.map_polygons), len(self.light_polygons)
        expected: dict[str, tuple[int | None, ...]] = {
            "ego_state": (STATE_SIZE,),
            "past_states": (None, STATE_SIZE),
            "agents_pose": (n, AGENT_STEPS[self.version], 3),
            "agents_valid": (n, AGENT_STEPS[self.version]),
            "agents_size": (n, 2),
            "agents_is_agent": (n,),
            "agents_stopped": (n,),
            "map_layer": (m,),
            "map_on_route": (m,),
            "light_active": (r, STEPS),
            "centerline": (None, 2),
            "pdm_poses": (STEPS, 3),
            "human_poses": (None, 3),
            "human_zero": (len(FILTERED),),
        }
        arrays = {name: getattr(self, name) for name in expected}
        arrays |= {"map_polygons": self.map_polygons.xy, "light_polygons": self.light_polygons.xy}
        for name, shape in expected.items():
            found = arrays[name].shape
            if len(found) != len(shape) or any(s is not None and s != f for s, f in zip(shape, found, strict=True)):
                raise SampleError("bad_context", f"scene {self.token}: {name} must be {list(shape)}, is {list(found)}")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SampleError("bad_context", f"scene {self.token}: {name} has values that are not finite")
        if len(self.centerline) < 2:
            raise SampleError(
                "no_centerline", f"scene {self.token}: a centerline needs 2 points, has {len(self.centerline)}"
            )

    def astype(self, dtype: DTypeLike) -> RewardContext:
        """The same with map, agents and centerline as `dtype` (float32 or float64); states and poses stay float64."""
        polygons = {
            name: replace(getattr(self, name), xy=getattr(self, name).xy.astype(dtype))
            for name in ("map_polygons", "light_polygons")
        }
        return replace(
            self,
            agents_pose=self.agents_pose.astype(dtype),
            agents_size=self.agents_size.astype(dtype),
            centerline=self.centerline.astype(dtype),
            **polygons,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ContextBatch:
    """S scenes as tensors on one device, floats float64; padded to the largest N, M, R, H.

    Attributes are those of `RewardContext` with a leading S, and: `agents_axis` [S, N, T, 2] and `agents_half`
    [S, N, 2] for box tests; `past_count` int64 [S]; `is_route_lane`, `is_lane`, `is_drivable`, `is_intersection`
    bool [S, M]; edges of the map, the lights and the centerline, `centerline_edges` [S, 4, P] padded with NaN, and
    `centerline_start` [S, P], metres to the start of each.
    """

    tokens: tuple[str, ...]
    version: Version
    timestamp_us: Tensor
    ego_state: Tensor
    past_states: Tensor
    past_count: Tensor
    agents_centre: Tensor
    agents_axis: Tensor
    agents_valid: Tensor
    agents_half: Tensor
    agents_is_agent: Tensor
    agents_stopped: Tensor
    map_edges: EdgeSet
    is_lane: Tensor
    is_route_lane: Tensor
    is_drivable: Tensor
    is_intersection: Tensor
    light_edges: EdgeSet
    light_active: Tensor
    line: EdgeSet
    centerline_edges: Tensor
    centerline_start: Tensor
    pdm_poses: Tensor
    pdm_progress: Tensor
    human_zero: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.ego_state.device

    def to(self, device: torch.device | str) -> ContextBatch:
        """The same on another device."""
        target = torch.device(device)
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(target) for k, v in values.items() if isinstance(v, Tensor | EdgeSet)}
        return replace(self, **moved)


def collate(contexts: Sequence[RewardContext], device: torch.device | str = "cpu") -> ContextBatch:
    """One batch of scenes of one version.

    Raises:
        SampleError: code ``version_mismatch``, the contexts are of both versions.
        ValueError: no contexts.
    """
    if not contexts:
        raise ValueError("collate: expected at least one context, got none")
    version = contexts[0].version
    for c in contexts:
        if c.version != version:
            raise SampleError("version_mismatch", f"scene {c.token} is a {c.version} context in a batch of {version}")
    pose = _pad([c.agents_pose for c in contexts])
    size = _pad([c.agents_size for c in contexts])
    valid = _pad([c.agents_valid for c in contexts])
    if version == "v2":
        replayed = torch.tensor([c.replayed for c in contexts])[:, None]
        valid &= ~(_overlap_at_start(pose, size, valid) & replayed)[..., None]
    layer = _pad([c.map_layer for c in contexts], fill=-1)
    is_lane = (layer == Layer.LANE) | (layer == Layer.LANE_CONNECTOR)
    drivable = (Layer.ROADBLOCK, Layer.INTERSECTION, Layer.DRIVABLE_AREA, Layer.CARPARK)
    line, line_edges, line_start = _centerlines([c.centerline for c in contexts])
    batch = ContextBatch(
        tokens=tuple(c.token for c in contexts),
        version=version,
        timestamp_us=torch.tensor([c.timestamp_us for c in contexts]),
        ego_state=_pad([c.ego_state for c in contexts]),
        past_states=_pad([c.past_states for c in contexts]),
        past_count=torch.tensor([len(c.past_states) for c in contexts]),
        agents_centre=pose[..., :2].contiguous(),
        agents_axis=torch.stack((pose[..., 2].cos(), pose[..., 2].sin()), dim=-1),
        agents_valid=valid,
        agents_half=size / 2.0,
        agents_is_agent=_pad([c.agents_is_agent for c in contexts]),
        agents_stopped=_pad([c.agents_stopped for c in contexts]),
        map_edges=_polygon_edges([c.map_polygons for c in contexts]),
        is_lane=is_lane,
        is_route_lane=is_lane & _pad([c.map_on_route for c in contexts]),
        is_drivable=torch.stack([layer == kind for kind in drivable]).any(dim=0),
        is_intersection=layer == Layer.INTERSECTION,
        light_edges=_polygon_edges([c.light_polygons for c in contexts]),
        light_active=_pad([c.light_active for c in contexts]),
        line=line,
        centerline_edges=line_edges,
        centerline_start=line_start,
        pdm_poses=_pad([c.pdm_poses for c in contexts]),
        pdm_progress=torch.tensor([c.pdm_progress for c in contexts], dtype=torch.float64),
        human_zero=_pad([c.human_zero for c in contexts]),
    )
    return batch.to(device)


def _overlap_at_start(pose: Tensor, size: Tensor, valid: Tensor) -> Tensor:
    """bool [S, N]: the agent's box at t0 meets the ego's. v2 drops such a track from all steps."""
    centre, heading = pose[:, :, 0, :2].reshape(-1, 2), pose[:, :, 0, 2].reshape(-1)
    axis = torch.stack((heading.cos(), heading.sin()), dim=-1)
    ego = torch.tensor([[REAR_AXLE_TO_CENTRE, 0.0], [1.0, 0.0], [HALF_LENGTH, HALF_WIDTH]], dtype=pose.dtype)
    meet = oriented_boxes_meet(ego[:1], ego[1:2], ego[2], centre, axis, size.reshape(-1, 2) / 2.0)
    return meet.view(valid.shape[:2]) & valid[:, :, 0]


def _offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)))


def _pad(arrays: Sequence[NDArray[Any]], fill: float = 0) -> Tensor:
    """Stack arrays that differ in their first axis; floats become float64."""
    first = arrays[0]
    dtype = np.dtype(np.float64) if first.dtype.kind == "f" else first.dtype
    out = np.full((len(arrays), max(len(a) for a in arrays), *first.shape[1:]), fill, dtype=dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def _polygon_edges(items: Sequence[Polygons]) -> EdgeSet:
    """The closed rings of the polygons of each scene."""
    xy = np.concatenate([p.xy for p in items]).astype(np.float64)
    ring_sizes = np.concatenate([np.diff(p.rings) for p in items])
    rings_each = np.concatenate([np.diff(p.polygons) for p in items])
    following = np.arange(1, len(xy) + 1)
    start = np.cumsum(ring_sizes) - ring_sizes
    filled = ring_sizes > 0
    following[(start + ring_sizes - 1)[filled]] = start[filled]
    edges = np.concatenate((xy, xy[following]), axis=1)
    chain = np.repeat(np.arange(len(ring_sizes)), ring_sizes)
    owner = np.repeat(np.arange(len(rings_each)), rings_each)
    return EdgeSet.build(edges, chain, owner, [len(p) for p in items])


def _centerlines(lines: Sequence[NDArray[np.floating[Any]]]) -> tuple[EdgeSet, Tensor, Tensor]:
    """Edges of each polyline: as blocks, and padded [S, 4, P] with the arc length [S, P] of their starts."""
    each = [np.concatenate((line[:-1], line[1:]), axis=1).astype(np.float64) for line in lines]
    scene = np.arange(len(each))
    blocks = EdgeSet.build(np.concatenate(each), np.repeat(scene, [len(e) for e in each]), scene, [1] * len(each))
    edges = _pad(each, fill=np.nan).mT.contiguous()
    size = length(edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1])
    return blocks, edges, size.cumsum(dim=1) - size
