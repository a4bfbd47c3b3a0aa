"""What is measured: the ops with the bytes that they must move, and the inputs over which they run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from dsd_kernels.sparsity import n_pruned

Shape = tuple[int, ...]

SPARSITY = 0.5
DTYPE = torch.float32
BIT = 1 / 8  # bytes
PEAK_BYTES_PER_WEIGHT = 80  # 63 measured, most of them the inputs and the copies of torch.sort


@dataclass(frozen=True)
class Op:
    """An op, and the bytes a weight of DTYPE that no implementation can avoid to move."""

    title: str
    floor_bytes_per_weight: float


OPS = {
    # reads weight, gradient, momentum; writes weight, momentum; one bit of mask
    "step": Op("masked SGD step (momentum, Nesterov, weight decay)", 5 * 4 + BIT),
    "select": Op("k-th magnitude of each tensor", 4),
    # one read to select; then weight and momentum are read and written, and the mask is written
    "prune": Op("prune event (select, make masks, zero weights and momentum)", 4 + 4 * 4 + BIT),
}


def resnet50_shapes() -> list[Shape]:
    """The 161 parameters of ResNet-50, in the order of torchvision's `resnet50().parameters()`."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, n_blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(n_blocks):
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:  # the shortcut changes the number of channels
                convolutions.append((4 * width, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]  # with the weight and bias of its batch norm
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


INPUTS: dict[str, list[Shape]] = {
    "1e6": [(1_000, 1_000)],
    "1e7": [(1_000, 10_000)],
    "1e8": [(10_000, 10_000)],
    "resnet50": resnet50_shapes(),
    "tiny": [(8, 8)] * 161,
}
QUICK_INPUTS = tuple(name for name in INPUTS if name != "1e8")


def fits(shapes: Sequence[Shape], device: str) -> bool:
    """Whether the inputs and every peer's temporary copies fit into the memory that there is."""
    if device == "cuda":
        memory = torch.cuda.mem_get_info()[0]
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(map(prod, shapes)) * PEAK_BYTES_PER_WEIGHT < memory * 0.8


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
    """

    params: list[Tensor]
    momentum_buffers: list[Tensor]
    targets: list[Tensor]
    target_buffers: list[Tensor]
    masks: list[Tensor]
    k: list[int]

    @torch.no_grad()
    def read(self) -> None:
        """Pass over all tensors but the masks, without a change."""
        for p, buffer in zip(self.params, self.momentum_buffers, strict=True):
            for tensor in (p, p.grad, buffer):
                if tensor is not None:
                    tensor.sum()


def make_inputs(shapes: Sequence[Shape], device: str) -> Inputs:
    """Normally distributed weights, gradients and momentum, and random masks; the same for the same shapes."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: Shape) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=DTYPE).mul_(0.05)

    params = [torch.nn.Parameter(normal(shape)) for shape in shapes]
    for p in params:
        p.grad = normal(tuple(p.shape))
    momentum_buffers = [normal(shape) for shape in shapes]
    pruned = [(p, m) for p, m in zip(params, momentum_buffers, strict=True) if p.dim() >= 2]
    return Inputs(
        params=list(params),
        momentum_buffers=momentum_buffers,
        targets=[p for p, _ in pruned],
        target_buffers=[m for _, m in pruned],
        masks=[torch.rand(p.shape, generator=generator, device=device) >= SPARSITY for p, _ in pruned],
        k=[n_pruned(SPARSITY, p.numel()) for p, _ in pruned],
    )
