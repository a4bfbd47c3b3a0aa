"""One threshold for many tensors, without concatenating them: how many weights of each lie below it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsd_kernels.ops import reference
from dsd_kernels.ops.checks import check_global_counts
from dsd_kernels.ops.layout import is_dense


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
        Exact and deterministic. Ties go to the earlier tensor first. Dtypes may differ: values are compared. NaN
        orders above Inf. No host synchronisation. No tensor is concatenated or copied, but one at a time of those with
        gaps. Dense tensors of one dtype on one device are one call of the op `global_counts`; others are served by its
        reference, on any backend, with about 40 MiB on each device.

    Source: radix selection; the global threshold of magnitude pruning.

    Example:
        >>> import torch
        >>> from dsd_kernels.ops.global_selection import global_counts
        >>> global_counts([torch.tensor([1.0, -5.0]), torch.tensor([0.5, 1.0, 9.0])], k=2)
        tensor([1, 1])
    """
    device = tensors[0].device
    k_on_device = torch.full((), k, dtype=torch.int64, device=device)
    if not all(t.dtype == tensors[0].dtype and t.device == device and is_dense(t) for t in tensors):
        return reference.global_counts(tensors, k_on_device)
    check_global_counts(tensors, k_on_device)
    return torch.ops.dsd_kernels.global_counts(tensors, k_on_device)
