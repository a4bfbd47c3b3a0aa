"""What contenders work on: tensors of given shapes, or a small network with a batch; made the same way each time."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dsd_kernels.masks import magnitude_masks
from dsd_kernels.sparsity import n_pruned
from dsd_kernels.tasks.networks import CharacterLSTM, ImageCNN

from .cases import SPARSITY
from .shapes import Shape
from .values import USUAL, VALUES

BATCH = 64
N_CHARACTERS = 90


@dataclass(frozen=True)
class Inputs:
    """Tensors that all contenders of a case share.

    Attributes:
        params: with their gradients in `.grad`.
        momentum_buffers: one per parameter.
        targets: the parameters to prune: as in `MaskedSGD.prune`, those of two or more dimensions.
        target_buffers: the momentum of these.
        masks: one bool mask per target, True = keep.
        k: how many weights each target loses when it is pruned.
        sparsity: the share that they are of it.
    """

    params: list[Tensor]
    momentum_buffers: list[Tensor]
    targets: list[Tensor]
    target_buffers: list[Tensor]
    masks: list[Tensor]
    k: list[int]
    sparsity: float

    @torch.no_grad()
    def read(self) -> None:
        """Pass over all tensors but the masks, without a change."""
        for p, buffer in zip(self.params, self.momentum_buffers, strict=True):
            for tensor in (p, p.grad, buffer):
                if tensor is not None:
                    tensor.sum()

    @property
    def n_bytes(self) -> int:
        """Of weights, gradients and momentum."""
        return 3 * sum(p.nbytes for p in self.params)

    @cached_property
    def originals(self) -> list[Tensor]:
        """Copies of the targets and their momentum, as they are when this is first asked for."""
        return [tensor.detach().clone() for tensor in self.targets + self.target_buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the originals back: to prune what is pruned already is an easier job."""
        for tensor, original in zip(self.targets + self.target_buffers, self.originals, strict=True):
            tensor.copy_(original)


def make_inputs(
    shapes: Sequence[Shape],
    device: str,
    dtype: torch.dtype = torch.float32,
    sparsity: float = SPARSITY,
    values: str = USUAL,
) -> Inputs:
    """Normally distributed gradients and momentum, weights of the `VALUES`, random masks; the same for the same."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: Shape) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype).mul_(0.05)

    params = [nn.Parameter(VALUES[values](normal(shape))) for shape in shapes]
    for p in params:
        p.grad = normal(tuple(p.shape))
    momentum_buffers = [normal(shape) for shape in shapes]
    pruned = [(p, m) for p, m in zip(params, momentum_buffers, strict=True) if p.dim() >= 2]
    return Inputs(
        params=list(params),
        momentum_buffers=momentum_buffers,
        targets=[p for p, _ in pruned],
        target_buffers=[m for _, m in pruned],
        masks=[torch.rand(p.shape, generator=generator, device=device) >= sparsity for p, _ in pruned],
        k=[n_pruned(sparsity, p.numel()) for p, _ in pruned],
        sparsity=sparsity,
    )


@dataclass(frozen=True)
class Training:
    """A network, a batch and magnitude masks, which are the same for every contender; each trains its own copy."""

    model: nn.Module
    batch: Tensor
    labels: Tensor
    sparsity: float

    @property
    def params(self) -> list[Tensor]:
        return list(self.model.parameters())

    def copy(self) -> nn.Module:
        return deepcopy(self.model)

    def loss(self, model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(self.batch).flatten(0, -2), self.labels)

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        """The mask of every parameter of two or more dimensions, by name."""
        named = {name: p for name, p in model.named_parameters() if p.dim() >= 2}
        tensors = [p.detach() for p in named.values()]
        return dict(zip(named, magnitude_masks(tensors, self.sparsity), strict=True))


def make_training(network: str, device: str, dtype: torch.dtype, sparsity: float) -> Training:
    """The networks that `dsd-kernels train` trains; random data costs the same as real data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if network == "cnn":
            model: nn.Module = ImageCNN()
            batch, labels = torch.rand(BATCH, 1, 8, 8).to(dtype), torch.randint(10, (BATCH,))
        else:
            model = CharacterLSTM(N_CHARACTERS)
            batch, labels = torch.randint(N_CHARACTERS, (2, BATCH, BATCH))
            labels = labels.flatten()
    return Training(model.to(device, dtype), batch.to(device), labels.to(device), sparsity)
