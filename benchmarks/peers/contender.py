"""What a contender is, and what all of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..cases import Moves
from ..workloads import Inputs

OURS = ("dsd_kernels", "MaskedSGD")
HYPERPARAMETERS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}


def nothing() -> None:
    """What a task does before it that runs again as it is."""


class Task(NamedTuple):
    """A job bound to its inputs: `run` is timed, `prepare` comes before it and is not."""

    run: Callable[[], Any]
    prepare: Callable[[], object] = nothing


@dataclass(frozen=True)
class Contender:
    """A named way to do a job.

    Attributes:
        bind: makes the task from the workload; what it or the task raises is why the contender is left out.
        moves: what it moves through memory once tensors are larger than the caches: reads and writes of weight,
            gradient, momentum, mask and temporary copies, counted from what its kernels do; None where that depends on
            the values.
        unmasked: the name of the same implementation without a mask.
        is_usual: measured without `--full` too, and in every variation.
        is_slow: takes many seconds over the largest inputs, so it is left out there, and in variations.
        compiles: takes seconds to compile, so it is measured only where asked for.
    """

    name: str
    bind: Callable[[Any], Task]
    moves: Moves | None = None
    unmasked: str | None = None
    is_usual: bool = False
    is_slow: bool = False
    compiles: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


def adopt_momentum(optimizer: torch.optim.Optimizer, inputs: Inputs) -> None:
    """Begin in the middle of training: a first step, which has no momentum yet, is another job."""
    for p, buffer in zip(inputs.params, inputs.momentum_buffers, strict=True):
        optimizer.state[p]["momentum_buffer"] = buffer
