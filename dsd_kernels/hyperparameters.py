"""What a parameter group may hold: torch's hyper-parameters as finite numbers, and our own."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.ops.checks import check_number, check_seed

MASK_MOMENTUM = ("zero", "keep")
OWN_DEFAULTS = {
    "mask_momentum": "zero",
    "lr_factor": 1.0,
    "momentum_dtype": None,
    "master_weights": False,
    "stochastic_rounding": False,
    "rounding_seed": 0,
    "full_state_dict": False,
    "n_masked": 0,  # counted in state dicts; torch.distributed.checkpoint loads only keys that live groups have
}
_NUMBERS = ("lr", "momentum", "dampening", "weight_decay", "lr_factor")
_FLAGS = ("master_weights", "stochastic_rounding", "full_state_dict")


def check_group(group: Mapping[str, Any]) -> None:
    """Raise unless what the group holds can be stepped with; what it lacks gets a default. Torch checks the signs.

    Raises:
        TypeError, ValueError: a hyper-parameter that is not a finite number; what `check_options` raises.
    """
    for name in _NUMBERS:
        if name in group:
            _check_number(name, group[name])
    check_options(group)


def check_options(group: Mapping[str, Any]) -> None:
    """Raise for an option of our own with a value that it does not take, and for two that exclude each other."""
    for name in _FLAGS:
        if not isinstance(group.get(name, False), bool):
            raise TypeError(f"{name}: expected True or False, got {group[name]!r}")
    policy = group.get("mask_momentum", "zero")
    if policy not in MASK_MOMENTUM:
        raise ValueError(f'mask_momentum: expected "zero" or "keep", got {policy!r}')
    if group.get("momentum_dtype") not in (None, torch.float32):
        raise ValueError(f"momentum_dtype: expected None or torch.float32, got {group['momentum_dtype']!r}")
    if group.get("stochastic_rounding") and group.get("master_weights"):
        raise ValueError("stochastic_rounding: expected False with master_weights, which lose nothing to rounding")
    seed = group.get("rounding_seed", 0)
    if not isinstance(seed, Tensor):  # which it becomes once it advances with every step
        check_seed("rounding_seed", seed)


def check_new_group(group: Mapping[str, Any]) -> None:
    """As `check_group`, for what a user gives: a seed that is a tensor would advance in the user's hands too."""
    if isinstance(group.get("rounding_seed"), Tensor):
        raise TypeError(f"rounding_seed: expected an int, got {group['rounding_seed']!r}")
    check_group(group)


def number(name: str, value: Any) -> float:
    """A hyper-parameter as the ops take it; it may have been set between two steps, so it is checked at each."""
    if type(value) is not float or not math.isfinite(value):
        _check_number(name, value)
    return float(value)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, Tensor):
        # one on a GPU is not read: that would wait for the device
        if value.device.type != "cpu" or value.numel() != 1:
            return
        value = value.item()
    if not isinstance(value, bool):  # torch takes True for 1
        check_number(name, value)


def learning_rate(group: Mapping[str, Any]) -> float | Tensor:
    """The scheduler's rate times the flow's factor."""
    lr: float | Tensor = group["lr"]
    return lr if group["lr_factor"] == 1 else lr * group["lr_factor"]
