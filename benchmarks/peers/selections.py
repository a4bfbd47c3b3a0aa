"""The k-th magnitude of each tensor."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsd_kernels import kth_magnitude

from ..workloads import Inputs
from .contender import Contender, Task


def select(inputs: Inputs) -> Task:
    return Task(lambda: kth_magnitude(inputs.targets, inputs.k))


def select_each(threshold: Callable[[Tensor, int], Any]) -> Callable[[Inputs], Task]:
    """A selection that knows one tensor at a time."""

    def bind(inputs: Inputs) -> Task:
        @torch.no_grad()
        def run() -> list[Any]:
            return [threshold(p.detach(), k) for p, k in zip(inputs.targets, inputs.k, strict=True)]

        return Task(run)

    return bind


def kthvalue(weights: Tensor, k: int) -> Tensor:
    return weights.abs().flatten().kthvalue(k).values


def topk(weights: Tensor, k: int) -> Tensor:
    return weights.abs().flatten().topk(k, largest=False).values[-1]


def sort(weights: Tensor, k: int) -> Tensor:
    return weights.abs().flatten().sort().values[k - 1]


def quantile(weights: Tensor, k: int) -> Tensor:
    """Takes no more than 2^24 weights, and rounds the rank in the weights' precision."""
    q = (k - 1) / max(1, weights.numel() - 1)
    return weights.abs().flatten().quantile(q, interpolation="nearest")


def partition(weights: Tensor, k: int) -> Any:
    return np.partition(np.abs(weights.numpy()).ravel(), k - 1)[k - 1]


SELECTIONS = (
    Contender("dsd_kernels.kth_magnitude", select, is_usual=True),
    Contender("torch.kthvalue", select_each(kthvalue), is_usual=True),
    Contender("torch.topk", select_each(topk), is_usual=True),
    Contender("torch.sort", select_each(sort), is_usual=True, is_slow=True),
    Contender("torch.quantile", select_each(quantile)),
    Contender("numpy.partition", select_each(partition), is_usual=True, devices=("cpu",)),
)
