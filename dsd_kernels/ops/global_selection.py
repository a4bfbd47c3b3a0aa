"""One threshold for many tensors, without concatenating them: how many weights of each lie below it."""

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from dsd_kernels.ops.layout import densify, memory_order
from dsd_kernels.ops.reference import magnitude_keys

_DIGIT_BITS = 16  # two rounds over float32 weights; a histogram of 65,536 counts
_CHUNK = 1 << 20  # weights whose keys exist at the same time


@torch.no_grad()
def global_counts(tensors: Sequence[Tensor], k: int) -> Tensor:
    """How many of the k smallest magnitudes of all tensors together belong to each of them.

    ``out[i] = how many of sort(concatenation of |tensors|)[:k] are weights of tensors[i]``

    Args:
        tensors: one or more, of float32, float64, bfloat16 or float16, of any shape, strides and device.
        k: an integer in [0, total number of weights]; not checked again.

    Returns:
        int64 tensor of shape (len(tensors),) on the device of the first tensor.

    Notes:
        Exact and deterministic: radix digits on the magnitude's bits, their histograms added up over tensors. Ties go
        to the earlier tensor first. Dtypes may differ: values are compared. NaN orders above Inf. No host
        synchronisation. Memory beyond the weights: about 40 MiB on each device, whatever their number, and a copy of
        one tensor with gaps.

    Source: radix selection; the global threshold of magnitude pruning.

    Example:
        >>> import torch
        >>> from dsd_kernels.ops.global_selection import global_counts
        >>> global_counts([torch.tensor([1.0, -5.0]), torch.tensor([0.5, 1.0, 9.0])], k=2)
        tensor([1, 1])
    """
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
    threshold, n_ties = _global_threshold(tensors, k, dtype)
    below, equal = torch.stack([_below_and_equal(t, dtype, threshold) for t in tensors], dim=1).unbind()
    ties_before = equal.cumsum(0) - equal
    return below + (n_ties - ties_before).clamp(min=0).minimum(equal)


def _global_threshold(tensors: Sequence[Tensor], k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The k-th smallest key of all tensors, and how many keys equal to it belong to the k smallest."""
    device = tensors[0].device
    key_bits = dtype.itemsize * 8 - 1
    prefix = torch.zeros((), dtype=torch.int64, device=device)
    remaining = torch.full((), k, dtype=torch.int64, device=device)
    for shift in range((key_bits - 1) // _DIGIT_BITS * _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64, device=device)
        for tensor in tensors:
            counts += _histogram(tensor, dtype, prefix.to(tensor.device), shift).to(device)
        up_to = counts.cumsum(0)
        digit = (up_to < remaining).sum()
        remaining = remaining - torch.take(up_to - counts, digit)
        prefix = (prefix << _DIGIT_BITS) | digit
    return prefix, remaining


def _histogram(tensor: Tensor, dtype: torch.dtype, prefix: Tensor, shift: int) -> Tensor:
    """Counts of the digit at `shift` among the keys whose higher digits are `prefix`."""
    counts = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64, device=tensor.device)
    for keys in _key_chunks(tensor, dtype):
        candidates = (keys >> shift >> _DIGIT_BITS) == prefix
        counts.scatter_add_(0, (keys >> shift) & ((1 << _DIGIT_BITS) - 1), candidates.long())
    return counts


def _below_and_equal(tensor: Tensor, dtype: torch.dtype, threshold: Tensor) -> Tensor:
    """How many keys of a tensor lie below the threshold, and how many equal it; on the threshold's device."""
    local = threshold.to(tensor.device)
    chunks = [torch.stack([(keys < local).sum(), (keys == local).sum()]) for keys in _key_chunks(tensor, dtype)]
    return torch.stack(chunks).sum(0).to(threshold.device)


def _key_chunks(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The magnitude keys of a tensor as one of the wider dtype, a chunk at a time."""
    [dense] = densify([tensor])
    for chunk in torch.split(memory_order(dense), _CHUNK):
        yield magnitude_keys(chunk.to(dtype))
