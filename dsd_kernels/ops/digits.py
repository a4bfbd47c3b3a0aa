"""The k-th smallest of whole numbers by their digits, from the highest down: only counts are looked at.

Who counts, and whose counts are added up, is the caller's: the magnitude keys of tensors, or of shards of them on
several ranks, or the places of weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dsd_kernels.ops.reference import DIGIT_BITS

N_BINS = 1 << DIGIT_BITS


class Digits(NamedTuple):
    """Per tensor: the digits of what was sought, and how many weights come before it and share it, here and in all."""

    found: Tensor
    below: Tensor
    equal: Tensor
    below_in_all: Tensor
    equal_in_all: Tensor
    remaining: Tensor  # how many of those that share it are among the k; one number where tensors are pooled


def find_digits(
    n_tensors: int,
    k: Tensor,
    n_bits: int,
    count: Callable[[Tensor, int], Tensor],
    add_up: Callable[[Tensor], Tensor] = lambda counts: counts,
    *,
    pooled: bool = False,
) -> Digits:
    """The k-th smallest number of each tensor, or of all together; no host synchronisation of its own.

    Args:
        n_tensors: how many.
        k: int64 tensor on the device of the counts, 1-based; one value per tensor, or one where they are pooled.
        n_bits: of the numbers.
        count: `count(found, shift)` counts, per tensor, the digit at `shift` of those whose higher digits are found.
        add_up: the counts of all ranks from those of this one. Default: there is one rank.
        pooled: whether k is for all tensors together.
    """
    zeros = torch.zeros(n_tensors, dtype=torch.int64, device=k.device)
    found, below, equal, below_in_all, equal_in_all = (zeros.clone() for _ in range(5))
    remaining = k
    for shift in range((n_bits - 1) // DIGIT_BITS * DIGIT_BITS, -1, -DIGIT_BITS):
        counts = count(found, shift)
        in_all = add_up(counts)
        up_to = (in_all.sum(0, keepdim=True) if pooled else in_all).cumsum(1)
        digit = (up_to < remaining[:, None]).sum(1, keepdim=True).expand(n_tensors, 1)
        before, before_in_all = ((c.cumsum(1) - c).gather(1, digit)[:, 0] for c in (counts, in_all))
        remaining = remaining - (before_in_all.sum(0, keepdim=True) if pooled else before_in_all)
        below, below_in_all = below + before, below_in_all + before_in_all
        equal, equal_in_all = counts.gather(1, digit)[:, 0], in_all.gather(1, digit)[:, 0]
        found = (found << DIGIT_BITS) | digit[:, 0]
    return Digits(found, below, equal, below_in_all, equal_in_all, remaining)
