"""Memory order: how the weights of a tensor are numbered, and how odd strides are brought into that order."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _dims_by_stride(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that matter, innermost first."""
    return sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills one block of memory, each byte once (contiguous up to a permutation of its dims)."""
    if tensor.numel() == 0:
        return True
    expected_stride = 1
    for stride, size in _dims_by_stride(tensor):
        if stride != expected_stride:
            return False
        expected_stride *= size
    return True


def may_overlap(tensor: Tensor) -> bool:
    """Whether two elements may share an address, as in an expanded tensor; such a tensor cannot be updated in place."""
    if tensor.numel() == 0:
        return False
    span = 1
    for stride, size in _dims_by_stride(tensor):
        if stride < span:
            return True
        span = stride * (size - 1) + span
    return False


def restride(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor laid out in memory as `like` is: itself if its strides agree, otherwise a copy."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def densify(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors themselves where they are dense, dense copies where they have gaps."""
    return [t if is_dense(t) else torch.empty_like(t).copy_(t) for t in tensors]


def memory_order(tensor: Tensor) -> Tensor:
    """A flat view of a dense tensor in the order of its addresses; weight i of a mask is element i of this view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def packed_bytes(n: int) -> int:
    """Bytes of the packed mask of n weights: one bit a weight, in whole 64-bit words."""
    return (n + 63) // 64 * 8
