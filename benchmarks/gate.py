"""Right before fast: what is about to be timed is held against torch's own SGD and a stable sort first."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dsd_kernels import MaskedSGD, kth_magnitude

from .cases import DTYPES, SPARSITY, Case
from .peers.contender import HYPERPARAMETERS, adopt_momentum
from .peers.steps import masked_sgd, torch_sgd, unmasked_sgd
from .shapes import Shape
from .values import USUAL, held
from .workloads import Inputs, make_inputs

SHAPES: list[Shape] = [(1, 1), (7, 1), (8, 8), (5, 13), (10, 100), (17, 241), (65, 1009), (100_003, 1), (64,), (1000,)]
N_STEPS = 3
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
MakeInputs = Callable[[], Inputs]  # the same at each call
IN_FULL = (torch.float32, torch.float64)  # the others are computed in float32 and rounded once


def problems_of(cases: Iterable[Case], device: str) -> list[str]:
    """What is wrong with anything that these cases measure; empty if speed may be measured."""
    settings = dict.fromkeys((case.dtype, case.sparsity, case.values) for case in cases)
    return [problem for setting in settings for problem in problems(device, *setting)]


def problems(
    device: str, dtype: torch.dtype = torch.float32, sparsity: float = SPARSITY, values: str = USUAL
) -> list[str]:
    def inputs() -> Inputs:
        return make_inputs(SHAPES, device, dtype, sparsity, values)

    found = [*step_problems(inputs), *unmasked_step_problems(inputs), *selection_problems(inputs)]
    how = f"{name_of(dtype)}, sparsity {sparsity:g}{held(values)}"
    return [f"{problem} ({how})" for problem in found]


def name_of(dtype: torch.dtype) -> str:
    return next(name for name, own in DTYPES.items() if own == dtype)


def step_problems(make: MakeInputs) -> list[str]:
    """The masked step must be, to the bit, torch.optim.SGD(foreach=False) and then a selection."""
    ours, expected = make(), make()
    step, oracle = masked_sgd(ours).run, torch_step(expected)
    for _ in range(N_STEPS):
        step()
        oracle()
        select_(expected)
    return differences("masked step", ours, expected)


def unmasked_step_problems(make: MakeInputs) -> list[str]:
    ours, expected = make(), make()
    step, oracle = unmasked_sgd(ours).run, torch_step(expected)
    for _ in range(N_STEPS):
        step()
        oracle()
    return differences("step without masks", ours, expected)


def torch_step(inputs: Inputs) -> Callable[[], object]:
    """torch's own step; for half precision in float32, rounded once."""
    if inputs.params[0].dtype in IN_FULL:
        return torch_sgd(foreach=False)(inputs).run

    def run() -> None:
        params = [torch.nn.Parameter(p.detach().float()) for p in inputs.params]
        for wide, p in zip(params, inputs.params, strict=True):
            wide.grad = None if p.grad is None else p.grad.float()
        optimizer = torch.optim.SGD(params, **HYPERPARAMETERS, foreach=False)
        for wide, buffer in zip(params, inputs.momentum_buffers, strict=True):
            optimizer.state[wide]["momentum_buffer"] = buffer.float()
        optimizer.step()
        for wide, p, buffer in zip(params, inputs.params, inputs.momentum_buffers, strict=True):
            p.detach().copy_(wide.detach())
            buffer.copy_(optimizer.state[wide]["momentum_buffer"])

    return run


@torch.no_grad()
def selection_problems(make: MakeInputs) -> list[str]:
    """The threshold and the pruned set must be those of a stable sort; ties are part of it."""
    ours, expected = make(), make()
    for p in ours.targets + expected.targets:
        p.mul_(100).round_()  # about a dozen different magnitudes
    thresholds = kth_magnitude(ours.targets, ours.k).tolist()
    found = []
    for p, threshold, mask, k in zip(expected.targets, thresholds, expected.masks, expected.k, strict=True):
        magnitudes, order = p.abs().flatten().sort(stable=True)
        mask.fill_(True).view(-1)[order[:k]] = False
        right = magnitudes[k - 1].item() if k else -torch.inf
        if threshold != right:
            found.append(f"kth_magnitude of shape {tuple(p.shape)}: {threshold}, a stable sort gives {right}")
    optimizer = MaskedSGD(ours.params, **HYPERPARAMETERS)
    adopt_momentum(optimizer, ours)
    optimizer.prune(ours.sparsity, ours.targets)
    select_(expected)
    return [*found, *differences("prune", ours, expected)]


@torch.no_grad()
def select_(inputs: Inputs) -> None:
    for p, buffer, mask in zip(inputs.targets, inputs.target_buffers, inputs.masks, strict=True):
        p.copy_(torch.where(mask, p, 0.0))
        buffer.copy_(torch.where(mask, buffer, 0.0))


def differences(what: str, ours: Inputs, expected: Inputs) -> list[str]:
    pairs = {
        "weights": zip(ours.params, expected.params, strict=True),
        "momentum": zip(ours.momentum_buffers, expected.momentum_buffers, strict=True),
    }
    return [
        f"{what}: {n} of {a.numel()} {kind} of shape {tuple(a.shape)} differ"
        for kind, tensors in pairs.items()
        for a, b in tensors
        if (n := n_different_bits(a, b))
    ]


def n_different_bits(a: Tensor, b: Tensor) -> int:
    """How many values differ to the bit, as +0 and -0 do."""
    bits = BITS[a.dtype.itemsize]
    return int((a.detach().view(bits) != b.detach().view(bits)).sum())
