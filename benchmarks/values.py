"""What weights hold: normal ones as in a network, and those that a selection may find hard."""

from collections.abc import Callable

import torch
from torch import Tensor

USUAL = "normal"
STRIPE = 64  # weights; less than the sample of a selection steps over


def held(values: str) -> str:
    """What the weights hold, in words; empty where that is usual."""
    return "" if values == USUAL else f", {values}"


def _striped(normal: Tensor) -> Tensor:
    """Large and small magnitudes in turn, so that a sample of regular places sees only one kind."""
    place = torch.arange(normal.numel(), device=normal.device).view(normal.shape)
    return normal.mul_(torch.where(place // STRIPE % 2 == 0, 1.0, 1e-3))


def _ascending(normal: Tensor) -> Tensor:
    """By magnitude, signs in turn."""
    flat = normal.view(-1)
    flat.copy_(flat.abs().sort().values)[::2].neg_()
    return normal


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    USUAL: lambda normal: normal,
    "zeros": Tensor.zero_,
    "equal": lambda normal: normal.fill_(0.05),
    "two-valued": lambda normal: normal.copy_(torch.where(normal < 0, 0.02, 0.05)),
    "half-zeros": lambda normal: normal.relu_(),
    "ascending": _ascending,
    "descending": lambda normal: normal.copy_(_ascending(normal).view(-1).flip(0).view(normal.shape)),
    "striped": _striped,
}
