"""The prune event: select, make masks, and zero what they prune."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from dsd_kernels import MaskedSGD

from ..workloads import Inputs
from .contender import HYPERPARAMETERS, Contender, Task, adopt_momentum
from .packages import magnitude_sparsifier
from .selections import kthvalue, topk

UNSTRUCTURED = "torch.nn.utils.prune.l1_unstructured, weights only"
SPARSIFIER = "torchao WeightNormSparsifier, weights only"


def prune(inputs: Inputs) -> Task:
    optimizer = MaskedSGD(inputs.params, **HYPERPARAMETERS)
    adopt_momentum(optimizer, inputs)
    inputs.originals  # noqa: B018  as they are now
    return Task(lambda: optimizer.prune(inputs.sparsity, inputs.targets), inputs.restore)


def prune_by_composition(threshold: Callable[[Tensor, int], Tensor]) -> Callable[[Inputs], Task]:
    """torch's threshold, then a comparison and two products."""

    def bind(inputs: Inputs) -> Task:
        inputs.originals  # noqa: B018  as they are now

        @torch.no_grad()
        def run() -> None:
            for p, buffer, k in zip(inputs.targets, inputs.target_buffers, inputs.k, strict=True):
                mask = p.abs() > threshold(p, k)
                p.mul_(mask)
                buffer.mul_(mask)

        return Task(run, inputs.restore)

    return bind


def holders(tensors: list[Tensor]) -> nn.ModuleList:
    """A module around a copy of each tensor: that is what packages prune."""
    modules = [nn.Module() for _ in tensors]
    for module, tensor in zip(modules, tensors, strict=True):
        module.weight = nn.Parameter(tensor.detach().clone())
    return nn.ModuleList(modules)


def prune_modules(inputs: Inputs) -> Task:
    """Keeps the weights beside the masks, and the momentum as it is."""
    modules = nn.ModuleList()

    def prepare() -> None:
        nonlocal modules
        modules = holders(inputs.targets)

    def run() -> list[Tensor]:
        pruned = zip(modules, inputs.k, strict=True)
        return [torch_prune.l1_unstructured(module, "weight", amount=k).weight for module, k in pruned]

    return Task(run, prepare)


def prune_by_torchao(inputs: Inputs) -> Task:
    """Keeps the weights beside the masks, and the momentum as it is; it knows matrices alone."""
    if any(p.dim() != 2 for p in inputs.targets):
        raise NotImplementedError("makes masks of the last two dimensions alone")
    modules = holders(inputs.targets)
    sparsifier = magnitude_sparsifier(inputs.sparsity)
    sparsifier.prepare(modules, [{"tensor_fqn": f"{i}.weight"} for i in range(len(modules))])

    def run() -> list[Tensor]:
        sparsifier.step()
        return [module.weight for module in modules]  # type: ignore[misc]

    return Task(run)


PRUNES = (
    Contender("MaskedSGD.prune", prune, is_usual=True),
    Contender("torch.kthvalue, compare, two products", prune_by_composition(kthvalue), is_usual=True),
    Contender("torch.topk, compare, two products", prune_by_composition(topk)),
    Contender(UNSTRUCTURED, prune_modules, is_usual=True, is_slow=True),
    Contender(SPARSIFIER, prune_by_torchao),
)
