"""Inputs and oracles shared by the tests: sizes, dtypes, awkward values, the stable sort, torch's own SGD."""

import itertools

import torch
from torch import Tensor

SIZES = (0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 4097, 65_537)
# Triton's interpreter takes milliseconds a program; what its kernels treat alike need not be run for every width.
# The edges of their own tiles and chunks are in test_triton.py.
INTERPRETER_SIZES = (0, 1, 33, 64, 65, 1000)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# every combination of SGD's options that torch allows
OPTIONS = [
    {
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    for momentum, dampening, weight_decay, nesterov, maximize in itertools.product(
        (0, 0.9), (0, 0.3), (0, 0.01), (False, True), (False, True)
    )
    if not (nesterov and (momentum == 0 or dampening != 0))
]


def option_id(options):
    return "-".join(f"{name}{value:g}" for name, value in options.items() if value) or "plain"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=generator(seed)).to(dtype)


BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by itemsize


def awkward(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Many ties, both zeros, both infinities, NaNs of several payloads, the smallest denormal."""
    tensor = (normal(n, torch.float64, seed) * 2).round().to(dtype)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    specials = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan, tiny, -tiny]
    for i, value in enumerate(specials):
        tensor[i * 11 % max(n, 1) : n : 97] = value
    bits = tensor.view(BITS[dtype.itemsize])
    if n > 5:
        bits[5] = torch.iinfo(bits.dtype).max  # a NaN with every payload bit set
    return tensor


def mostly_nan(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Two of three are NaNs: with the least payload, with the usual one, and with every bit of it in both signs."""
    tensor = normal(n, dtype, seed)
    bits = tensor.view(BITS[dtype.itemsize])
    least = int(torch.tensor(torch.inf, dtype=dtype).view(bits.dtype)) + 1
    usual = int(torch.tensor(torch.nan, dtype=dtype).view(bits.dtype))
    payloads = torch.tensor([least, usual, torch.iinfo(bits.dtype).max, -1], dtype=bits.dtype)
    is_nan = torch.rand(n, generator=generator(seed)) > 1 / 3
    bits[is_nan] = payloads.repeat(n // 4 + 1)[: int(is_nan.sum())]
    return tensor


def in_memory_order(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def stable_sort_keep(tensor: Tensor, k: int) -> Tensor:
    """The oracle of selection: flat bool, in memory order, False for the k smallest |w|, ties by lowest index first."""
    order = in_memory_order(tensor.detach().cpu()).double().abs().sort(stable=True).indices
    keep = torch.ones(tensor.numel(), dtype=torch.bool)
    keep[order[:k]] = False
    return keep


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit: NaN equals the same NaN, +0 differs from -0."""
    view = BITS[a.dtype.itemsize]
    return (
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(view), b.contiguous().view(view))
    )
