"""The contenders: this library, and the ways people do the same job without it, each run as its users run it.

The bytes a weight are those that each moves through memory in float32 once tensors are larger than the caches: reads
and writes of weight, gradient, momentum, mask and temporary copies, counted from what its kernels do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import BIT, SPARSITY, Inputs
from dsd_kernels import MaskedSGD, kth_magnitude

HYPERPARAMETERS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}


def nothing() -> None:
    """What a task does before it that runs again as it is."""


class Task(NamedTuple):
    """A job bound to its inputs: `run` is timed, `prepare` comes before it and is not."""

    run: Callable[[], object]
    prepare: Callable[[], object] = nothing


@dataclass(frozen=True)
class Contender:
    """A named way to do a job; the bytes a weight are None where they depend on the values."""

    name: str
    bind: Callable[[Inputs], Task]
    bytes_per_weight: float | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")


def masked_sgd(inputs: Inputs) -> Task:
    optimizer = MaskedSGD(inputs.params, **HYPERPARAMETERS)
    optimizer.set_masks(dict(zip(inputs.targets, inputs.masks, strict=True)))
    adopt_momentum(optimizer, inputs)
    return Task(optimizer.step)


def unmasked_sgd(inputs: Inputs) -> Task:
    optimizer = MaskedSGD(inputs.params, **HYPERPARAMETERS)
    adopt_momentum(optimizer, inputs)
    return Task(optimizer.step)


def torch_sgd(**implementation: bool) -> Callable[[Inputs], Task]:
    """torch.optim.SGD without a mask, in one of its implementations."""

    def bind(inputs: Inputs) -> Task:
        optimizer = torch.optim.SGD(inputs.params, **HYPERPARAMETERS, **implementation)
        adopt_momentum(optimizer, inputs)
        return Task(optimizer.step)

    return bind


def torch_sgd_bool_mask(**implementation: bool) -> Callable[[Inputs], Task]:
    """The step, then `p.mul_(mask)`: on a CPU the faster of the usual ways, though slower than its bytes say.

    torch casts the mask there in small blocks: 8 times the time of a float mask; `masked_fill_` takes 13 times.
    """

    def bind(inputs: Inputs) -> Task:
        step = torch_sgd(**implementation)(inputs).run

        @torch.no_grad()
        def run() -> None:
            step()
            for p, mask in zip(inputs.targets, inputs.masks, strict=True):
                p.mul_(mask)

        return Task(run)

    return bind


def torch_sgd_float_masks(*, on_momentum: bool, **implementation: bool) -> Callable[[Inputs], Task]:
    """The step, then one multi-tensor product with float masks: one launch or few, where there are launches."""

    def bind(inputs: Inputs) -> Task:
        step = torch_sgd(**implementation)(inputs).run
        masks = [mask.to(p.dtype) for p, mask in zip(inputs.targets, inputs.masks, strict=True)]
        masked = inputs.targets + (inputs.target_buffers if on_momentum else [])
        factors = masks + (masks if on_momentum else [])

        @torch.no_grad()
        def run() -> None:
            step()
            torch._foreach_mul_(masked, factors)

        return Task(run)

    return bind


def adopt_momentum(optimizer: torch.optim.Optimizer, inputs: Inputs) -> None:
    """Begin in the middle of training: a first step, which has no momentum yet, is another job."""
    for p, buffer in zip(inputs.params, inputs.momentum_buffers, strict=True):
        optimizer.state[p]["momentum_buffer"] = buffer


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


def partition(weights: Tensor, k: int) -> Any:
    return np.partition(np.abs(weights.numpy()).ravel(), k - 1)[k - 1]


def prune(inputs: Inputs) -> Task:
    optimizer = MaskedSGD(inputs.params, **HYPERPARAMETERS)
    adopt_momentum(optimizer, inputs)
    return Task(lambda: optimizer.prune(SPARSITY, inputs.targets), restoring(inputs))


def prune_by_composition(inputs: Inputs) -> Task:
    """torch's threshold, then a comparison and two products."""

    @torch.no_grad()
    def run() -> None:
        for p, buffer, k in zip(inputs.targets, inputs.target_buffers, inputs.k, strict=True):
            mask = p.abs() > kthvalue(p, k)
            p.mul_(mask)
            buffer.mul_(mask)

    return Task(run, restoring(inputs))


def restoring(inputs: Inputs) -> Callable[[], None]:
    """Bring back the weights of now: to prune what is pruned already is an easier job."""
    changed = inputs.targets + inputs.target_buffers
    saved = [tensor.detach().clone() for tensor in changed]

    @torch.no_grad()
    def restore() -> None:
        for tensor, original in zip(changed, saved, strict=True):
            tensor.copy_(original)

    return restore


def memory_floor(n_bytes: float, device: str) -> Task:
    """Move as many bytes as an op must, in the simplest way: an in-place scale on a CPU, a copy on a GPU.

    A CPU's copy reads what it is about to overwrite, so it would count bytes that the update does not move. What it
    moves is as warm in the caches as the inputs are for the others.
    """
    source = torch.ones(max(1, round(n_bytes / 8)), device=device)  # each element is read and written: 8 bytes
    if device == "cpu":
        return Task(lambda: source.mul_(1.0), lambda: source.sum())
    target = torch.empty_like(source)
    return Task(lambda: target.copy_(source))


# this library comes first: ratios are over the first
CONTENDERS = {
    "step": (
        Contender("dsd_kernels, masked", masked_sgd, 20 + BIT),
        Contender("dsd_kernels, no mask", unmasked_sgd, 20),
        Contender("torch fused, no mask", torch_sgd(fused=True), 20),
        Contender("torch foreach, no mask", torch_sgd(foreach=True), 56),
        Contender("torch for-loop, no mask", torch_sgd(foreach=False), 56),
        Contender("torch fused + bool mask on p", torch_sgd_bool_mask(fused=True), 29),
        Contender("torch fused + float mask on p", torch_sgd_float_masks(on_momentum=False, fused=True), 32),
        Contender("torch fused + float masks on p, m", torch_sgd_float_masks(on_momentum=True, fused=True), 44),
        Contender("torch foreach + float masks on p, m", torch_sgd_float_masks(on_momentum=True, foreach=True), 80),
    ),
    "select": (
        Contender("dsd_kernels.kth_magnitude", select),
        Contender("torch.kthvalue", select_each(kthvalue)),
        Contender("torch.topk", select_each(topk)),
        Contender("torch.sort", select_each(sort)),
        Contender("numpy.partition", select_each(partition), devices=("cpu",)),
    ),
    "prune": (
        Contender("MaskedSGD.prune", prune),
        Contender("torch.kthvalue, compare, two products", prune_by_composition),
    ),
}


def contenders(op: str, device: str) -> list[Contender]:
    """Who can do the op on a device, this library first."""
    return [contender for contender in CONTENDERS[op] if device in contender.devices]
