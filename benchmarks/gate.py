"""Right before fast: what is about to be timed is held against torch's own SGD and a stable sort first."""

import torch
from torch import Tensor

from benchmarks.cases import SPARSITY, Inputs, Shape, make_inputs
from benchmarks.peers import HYPERPARAMETERS, adopt_momentum, masked_sgd, torch_sgd, unmasked_sgd
from dsd_kernels import MaskedSGD, kth_magnitude

SHAPES: list[Shape] = [(1, 1), (7, 1), (8, 8), (5, 13), (10, 100), (17, 241), (65, 1009), (100_003, 1), (64,), (1000,)]
N_STEPS = 3


def problems(device: str) -> list[str]:
    """What is wrong on this device; empty if speed may be measured."""
    return [*step_problems(device), *unmasked_step_problems(device), *selection_problems(device)]


def step_problems(device: str) -> list[str]:
    """The masked step must be, to the bit, torch.optim.SGD(foreach=False) and then a selection."""
    ours, expected = make_inputs(SHAPES, device), make_inputs(SHAPES, device)
    step, oracle = masked_sgd(ours).run, torch_sgd(foreach=False)(expected).run
    for _ in range(N_STEPS):
        step()
        oracle()
        select_(expected)
    return differences("masked step", ours, expected)


def unmasked_step_problems(device: str) -> list[str]:
    ours, expected = make_inputs(SHAPES, device), make_inputs(SHAPES, device)
    step, oracle = unmasked_sgd(ours).run, torch_sgd(foreach=False)(expected).run
    for _ in range(N_STEPS):
        step()
        oracle()
    return differences("step without masks", ours, expected)


@torch.no_grad()
def selection_problems(device: str) -> list[str]:
    """The threshold and the pruned set must be those of a stable sort; ties are part of it."""
    ours, expected = make_inputs(SHAPES, device), make_inputs(SHAPES, device)
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
    optimizer.prune(SPARSITY, ours.targets)
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
    """How many float32 values differ to the bit, as +0 and -0 do."""
    return int((a.detach().view(torch.int32) != b.detach().view(torch.int32)).sum())
