"""A whole training step of a small network: forward, backward, update, and whatever keeps the mask."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from dsd_kernels import MaskedSGD

from ..workloads import Training
from .contender import HYPERPARAMETERS, IMPLEMENTATIONS, Contender, Task, nothing
from .packages import magnitude_sparsifier

UNMASKED = "dsd_kernels, no mask"
FUSED, FOREACH = "torch fused, no mask", "torch foreach, no mask"


def training_step(
    training: Training, model: nn.Module, optimizer: torch.optim.Optimizer, then: Callable[[], object] = nothing
) -> Task:
    def run() -> nn.Module:
        optimizer.zero_grad()
        training.loss(model).backward()
        optimizer.step()
        then()
        return model

    return Task(run)


def masked_sgd(training: Training) -> Task:
    model = training.copy()
    optimizer = MaskedSGD(model.parameters(), **HYPERPARAMETERS)
    optimizer.prune(training.sparsity)
    return training_step(training, model, optimizer)


def unmasked_sgd(training: Training) -> Task:
    model = training.copy()
    return training_step(training, model, MaskedSGD(model.parameters(), **HYPERPARAMETERS))


def torch_sgd(kind: str) -> Callable[[Training], Task]:
    def bind(training: Training) -> Task:
        model = training.copy()
        return training_step(training, model, fused_sgd(model, kind))

    return bind


def fused_sgd(model: nn.Module, kind: str = "fused") -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **HYPERPARAMETERS, **IMPLEMENTATIONS[kind])


def torch_sgd_masks(kind: str, *, as_float: bool, on_momentum: bool) -> Callable[[Training], Task]:
    """The mask comes after the step, as products."""

    def bind(training: Training) -> Task:
        model = training.copy()
        optimizer = fused_sgd(model, kind)
        masks = training.masks(model)
        pairs = [(model.get_parameter(name), mask) for name, mask in masks.items()]
        masked = [(p, mask.to(p.dtype) if as_float else mask) for p, mask in pairs]

        @torch.no_grad()
        def apply_masks() -> None:
            for p, mask in masked:
                p.mul_(mask)
                if on_momentum:
                    optimizer.state[p]["momentum_buffer"].mul_(mask)

        return training_step(training, model, optimizer, apply_masks)

    return bind


def owners(model: nn.Module, masks: dict[str, Tensor]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """The module that holds each masked parameter, its name there, and the mask."""
    for path, mask in masks.items():
        module, _, name = path.rpartition(".")
        yield model.get_submodule(module), name, mask


def torch_prune_sgd(training: Training) -> Task:
    """Multiplies by the mask in every forward and backward pass; it keeps a copy of the weights."""
    model = training.copy()
    for module, name, mask in list(owners(model, training.masks(model))):
        torch_prune.custom_from_mask(module, name, mask)
    return training_step(training, model, fused_sgd(model))


def torchao_sgd(training: Training) -> Task:
    """Multiplies by the mask as a parametrization; it knows matrices alone."""
    model = training.copy()
    masks = training.masks(model)
    if any(mask.dim() != 2 for mask in masks.values()):
        raise NotImplementedError("makes masks of the last two dimensions alone")
    sparsifier = magnitude_sparsifier(training.sparsity)
    sparsifier.prepare(model, [{"tensor_fqn": name} for name in masks])
    sparsifier.step()
    return training_step(training, model, fused_sgd(model))


TRAININGS = (
    Contender("dsd_kernels, masked", masked_sgd, unmasked=UNMASKED, is_usual=True),
    Contender(UNMASKED, unmasked_sgd, is_usual=True),
    Contender(FUSED, torch_sgd("fused"), is_usual=True),
    Contender(FOREACH, torch_sgd("foreach"), is_usual=True),
    Contender("torch for-loop, no mask", torch_sgd("for-loop")),
    Contender(
        "torch fused + bool mask on p",
        torch_sgd_masks("fused", as_float=False, on_momentum=False),
        unmasked=FUSED,
        is_usual=True,
    ),
    Contender(
        "torch fused + float masks on p, m",
        torch_sgd_masks("fused", as_float=True, on_momentum=True),
        unmasked=FUSED,
        is_usual=True,
    ),
    Contender(
        "torch foreach + float masks on p, m",
        torch_sgd_masks("foreach", as_float=True, on_momentum=True),
        unmasked=FOREACH,
    ),
    Contender("torch.nn.utils.prune + torch fused", torch_prune_sgd, unmasked=FUSED, is_usual=True),
    Contender("torchao WeightNormSparsifier + torch fused", torchao_sgd, unmasked=FUSED),
)
