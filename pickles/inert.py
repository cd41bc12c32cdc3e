"""Read pickles of devkit classes without the devkit, and without running anything that they ask for.

The unpickler resolves a fixed list of names and nothing else. A listed class becomes an inert `Record`: what its
constructor was called with and what its state was set to are kept as data; no method of it exists. The few listed
functions (numpy's array builders, shapely's WKB reader) are replaced by ours, which make plain values. Any other name
is refused before it is looked up, with `UnsafePickleError`.

Guarantee: no code but this file's and the C unpickler's runs, after a walk that refuses what would make that one
allocate more than the file's size bears out (`pickles.walk`). Not promised: a bound on time.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pickles.walk import RefusedError, Walk
from shards_schema.errors import UnsafePickleError

_WALK = Walk("NEWOBJ", "NEWOBJ_EX")


class Record:
    """An object of a devkit class, as data.

    Attributes:
        args: what it was constructed with.
        fields: the state that it was given, by attribute name (instance dictionary and slots alike).
    """

    kind = ""
    """The class, as ``module.name``."""

    __slots__ = ("args", "fields")

    args: tuple[Any, ...]
    fields: dict[str, Any]

    def __new__(cls, *args: Any) -> Record:
        """Keep the arguments; a pickle may make an object this way without calling it."""
        record = object.__new__(cls)
        record.args = args
        record.fields = {}
        return record

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if part is None:
                continue
            if not isinstance(part, dict):
                raise pickle.UnpicklingError(f"state of {self.kind} is a {type(part).__name__}, expected a dict")
            self.fields.update(part)

    def __getitem__(self, name: str) -> Any:
        if name not in self.fields:
            raise KeyError(f"{self.kind} has no attribute {name!r}")
        return self.fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def __repr__(self) -> str:
        return f"<{self.kind} args={len(self.args)} fields={sorted(self.fields)}>"


class Wkb(bytes):
    """A geometry in well-known binary, not parsed yet."""

    __slots__ = ()


class _DType(Record):
    """The arguments of a numpy dtype; made real only if it is a plain one."""

    kind = "numpy.dtype"
    __slots__ = ("state",)
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def is_object(self) -> bool:
        """Whether it is numpy's dtype of Python objects."""
        return self.args[:1] in (("O8",), ("O",))

    def numpy(self) -> np.dtype[Any]:
        """The real dtype."""
        code = self.args[0] if self.args else None
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]|[US][0-9]{1,4}", code):
            raise UnsafePickleError("unsafe_pickle", f"numpy dtype {code!r} is not a plain one")
        order = self.state[1] if getattr(self, "state", None) else "="
        return np.dtype(code).newbyteorder(">" if order == ">" else "<" if order == "<" else "=")


class Array(Record):
    """What numpy's `_reconstruct` was asked for; `value` is an ndarray, or a list for a flat array of objects."""

    kind = "numpy.ndarray"
    __slots__ = ("value",)
    value: Any

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        if dtype.is_object:
            if not isinstance(data, list) or len(shape) != 1 or len(data) != shape[0]:
                raise pickle.UnpicklingError(f"an array of objects must be flat, has shape {shape}")
            self.value = data
        else:
            self.value = _frombuffer(data, dtype, shape, "F" if fortran else "C").value


def _frombuffer(data: bytes | bytearray, dtype: _DType, shape: tuple[int, ...], order: str) -> Array:
    if not shape or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"not the shape of an array: {shape}")
    plain = dtype.numpy()
    if len(data) != plain.itemsize * math.prod(shape):
        raise pickle.UnpicklingError(f"an array of shape {shape} and type {plain} has {len(data)} bytes")
    array = Array()
    array.value = np.frombuffer(bytes(data), plain).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.numpy(), count=1)[0].item()


def _wkb(data: bytes) -> Wkb:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError(f"WKB must be bytes, is {type(data).__name__}")
    return Wkb(data)


class _Function:
    """A function that a pickle may call and do nothing else with: it has no attribute that a state could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a state for the function {self._function.__name__}")


_STATE = "nuplan.common.actor_state"
_PDM = "navsim.planning.simulation.planner.pdm_planner"

_CLASSES: Mapping[str, tuple[str, ...]] = {
    "navsim.common.dataclasses": ("Trajectory",),
    "navsim.common.enums": ("SceneFrameType",),
    "navsim.planning.metric_caching.metric_cache": ("MetricCache", "MapParameters"),
    f"{_PDM}.observation.pdm_observation": ("PDMObservation",),
    f"{_PDM}.observation.pdm_occupancy_map": ("PDMDrivableMap", "PDMOccupancyMap"),
    f"{_PDM}.utils.pdm_path": ("PDMPath",),
    f"{_STATE}.agent": ("Agent",),
    f"{_STATE}.agent_state": ("AgentState",),
    f"{_STATE}.agent_temporal_state": ("AgentTemporalState",),
    f"{_STATE}.car_footprint": ("CarFootprint",),
    f"{_STATE}.dynamic_car_state": ("DynamicCarState",),
    f"{_STATE}.ego_state": ("EgoState",),
    f"{_STATE}.oriented_box": ("Dimension", "OrientedBox"),
    f"{_STATE}.scene_object": ("SceneObject", "SceneObjectMetadata"),
    f"{_STATE}.state_representation": ("Point2D", "StateSE2", "StateVector2D", "TimePoint"),
    f"{_STATE}.static_object": ("StaticObject",),
    f"{_STATE}.tracked_objects": ("TrackedObjects",),
    f"{_STATE}.tracked_objects_types": ("TrackedObjectType",),
    f"{_STATE}.vehicle_parameters": ("VehicleParameters",),
    f"{_STATE}.waypoint": ("Waypoint",),
    "nuplan.common.maps.maps_datatypes": (
        "SemanticMapLayer",
        "TrafficLightStatusData",
        "TrafficLightStatusType",
        "TrafficLightStatuses",
    ),
    "nuplan.planning.simulation.observation.observation_type": ("DetectionsTracks",),
    "nuplan.planning.simulation.trajectory.interpolated_trajectory": ("InterpolatedTrajectory",),
    "nuplan.planning.simulation.trajectory.trajectory_sampling": ("TrajectorySampling",),
    "numpy": ("ndarray",),
    "pathlib": ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
}

_FUNCTIONS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    ("numpy._core.multiarray", "scalar"): _Function(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Function(_frombuffer),
    ("numpy._core.numeric", "_frombuffer"): _Function(_frombuffer),
    ("shapely", "from_wkb"): _Function(_wkb),
    ("shapely.io", "from_wkb"): _Function(_wkb),
}

ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    **{
        (module, name): type(name, (Record,), {"__slots__": (), "kind": f"{module}.{name}"})
        for module, names in _CLASSES.items()
        for name in names
    },
    **_FUNCTIONS,
}
"""Everything that a pickle may name."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            name = f"{module_name}.{global_name}"
            raise UnsafePickleError("unsafe_pickle", f"the pickle asks for {name}, which is not allowed") from None


def load(data: bytes) -> Any:
    """Unpickle `data` into records, numbers, strings, containers, `Wkb` and arrays.

    Raises:
        UnsafePickleError: a name that is not listed.
        pickle.UnpicklingError and what else the pickle module raises: damaged data.
    """
    try:
        return _WALK.load(data, _InertUnpickler)
    except RefusedError as error:
        raise UnsafePickleError("unsafe_pickle", f"the pickle asks for {error}, which is not allowed") from None
