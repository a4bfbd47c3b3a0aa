"""The step of masked_sgd.py for an optimizer that keeps a plan of its lists: only gradients and numbers are new."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dsd_kernels.ops.triton.masked_sgd import chunk_size, update
from dsd_kernels.ops.triton.tables import launch_on, table_of_addresses

_Addresses = tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    """Addresses by list; 0 where a tensor has none, and an empty list where none of them has."""

    sizes: tuple[int, ...]
    params: _Addresses
    momentum_buffers: _Addresses
    masks: _Addresses


_plans = WeakTensorKeyDictionary()  # a plan's tensor is written once


def planned_sgd_(plan: Tensor, grads: Sequence[Tensor], *, dry_run: bool, **options: Any) -> bool:
    """One launch for all tensors; False, and nothing done, if a gradient is not as planned.

    Passes and synchronisation are those of `masked_sgd_`.
    """
    if not grads:
        return False
    known = _plans.get(plan)
    if known is None:
        known = _plans[plan] = _read(plan)
    if not _are_plain(grads, known.sizes):
        return False
    given = tuple(map(Tensor.data_ptr, grads))
    device, dtype = grads[0].device, grads[0].dtype
    if not _are_apart(known.sizes, known.params, given, dtype.itemsize):
        return False
    if dry_run:
        return True
    formats = [dtype, dtype, dtype if known.momentum_buffers else None, None]
    addresses = (known.params, given, known.momentum_buffers, (), known.masks)
    with launch_on(device):
        table = table_of_addresses(device, chunk_size(formats), known.sizes, addresses)
        update(table, formats, has_mask=bool(known.masks), **options)
    return True


def _read(plan: Tensor) -> _Plan:
    """The rows of csrc/step_plan.h: size, addresses of parameter, momentum and mask."""
    sizes, params, *lists = zip(*plan.view(-1, 4).tolist(), strict=True)
    return _Plan(sizes, params, *(addresses if any(addresses) else () for addresses in lists))


def _are_plain(grads: Sequence[Tensor], sizes: tuple[int, ...]) -> bool:
    """Whether all are of the first one's dtype and device, and laid out as their contiguous parameters are."""
    forms = set(map(attrgetter("dtype", "layout"), grads))
    return (
        forms == {(grads[0].dtype, torch.strided)}
        and tuple(map(Tensor.numel, grads)) == sizes
        and len(set(map(Tensor.get_device, grads))) == 1
        and all(map(Tensor.is_contiguous, grads))
    )


@lru_cache(maxsize=128)
def _are_apart(sizes: tuple[int, ...], params: _Addresses, grads: _Addresses, itemsize: int) -> bool:
    """Whether every gradient has memory, which is none of its parameter's, or all of it."""
    return all(
        size == 0 or grad == param or (grad != 0 and abs(grad - param) >= size * itemsize)
        for size, param, grad in zip(sizes, params, grads, strict=True)
    )
