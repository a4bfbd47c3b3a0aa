"""Memory order: how the weights of a tensor are numbered, and how odd strides are brought into that order."""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills one block of memory, each byte once (contiguous up to a permutation of its dims)."""
    if tensor.is_contiguous():
        return True
    dims = _dims(tensor)
    expected_stride = 1
    for _ in dims:  # no sort: torch.compile cannot trace one over symbolic strides
        size = next((size for size, stride in dims if stride == expected_stride), None)
        if size is None:
            return False
        expected_stride *= size
    return True


def may_overlap(tensor: Tensor) -> bool:
    """Whether two elements may share an address, as in an expanded tensor; such a tensor cannot be updated in place."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return False
    span = 1
    for size, stride in sorted(_dims(tensor), key=lambda dim: dim[1]):
        if stride < span:
            return True
        span = stride * (size - 1) + span
    return False


def _dims(tensor: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the dimensions that matter."""
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1]


def restride(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor laid out in memory as `like` is: itself if its strides agree, otherwise a copy."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def densify(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors themselves where dense, dense copies where they have gaps; what is no tensor is left to the check."""
    return [torch.empty_like(t).copy_(t) if _is_strided(t) and not is_dense(t) else t for t in tensors]


def align(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> Sequence[Tensor]:
    """Every tensor laid out as its counterpart; what cannot be is left to the check, which names it."""
    if len(tensors) != len(like):
        return tensors
    pairs = zip(tensors, like, strict=True)
    return [restride(t, p) if _is_strided(t) and _is_strided(p) and t.shape == p.shape else t for t, p in pairs]


def _is_strided(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided


def memory_order(tensor: Tensor) -> Tensor:
    """A flat view of a dense tensor in the order of its addresses; weight i of a mask is element i of this view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def packed_bytes(n: int) -> int:
    """Bytes of the packed mask of n weights: one bit a weight, in whole 64-bit words."""
    return (n + 63) // 64 * 8
