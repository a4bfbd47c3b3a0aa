"""What a parameter group may hold: torch's hyper-parameters as finite numbers, and the two of our own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsd_kernels.ops.checks import check_number

MASK_MOMENTUM = ("zero", "keep")
_NUMBERS = ("lr", "momentum", "dampening", "weight_decay", "lr_factor")


def check_group(group: Mapping[str, Any]) -> None:
    """Raise unless what the group holds can be stepped with; what it lacks gets a default. Torch checks the signs.

    Raises:
        TypeError, ValueError: a hyper-parameter that is not a finite number; an unknown mask_momentum.
    """
    for name in _NUMBERS:
        if name in group:
            _check_number(name, group[name])
    policy = group.get("mask_momentum", "zero")
    if policy not in MASK_MOMENTUM:
        raise ValueError(f'mask_momentum: expected "zero" or "keep", got {policy!r}')


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
