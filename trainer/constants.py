"""Constants on a device: sent there once, not in every step, since a copy from the host makes it wait for the device.

For what is no buffer of a module, and so does not move with one: answers and statistics, which know no device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_SENT = WeakTensorKeyDictionary()
"""Constant -> device -> its copy there; forgotten with the constant."""


def sent(constant: Tensor, device: torch.device) -> Tensor:
    """A constant, which nobody changes in place, on a device; the same tensor each time."""
    if constant.device == device:
        return constant
    there: dict[torch.device, Tensor] = _SENT.setdefault(constant, {})  # type: ignore[no-untyped-call]
    if device not in there:
        there[device] = constant.to(device)
    return there[device]
