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
class _Part:
    """The rows of a plan that have a mask, or those that have none: one launch."""

    indices: tuple[int, ...]
    sizes: tuple[int, ...]
    params: _Addresses
    momentum_buffers: _Addresses  # empty without momentum
    masks: _Addresses


@dataclass(frozen=True)
class _Plan:
    sizes: list[int]
    parts: tuple[_Part, ...]


_plans = WeakTensorKeyDictionary()  # a plan's tensor is written once


def planned_sgd_(plan: Tensor, grads: Sequence[Tensor], *, dry_run: bool, **options: Any) -> bool:
    """One launch for all tensors with masks, one for those without; False, and nothing done, if one is not as planned.

    Passes and synchronisation are those of `masked_sgd_`.
    """
    known = _plans.get(plan)
    if known is None:
        known = _plans[plan] = _read(plan)
    if not grads or not _are_plain(grads, known.sizes):
        return False
    found = tuple(map(Tensor.data_ptr, grads))
    device, dtype = grads[0].device, grads[0].dtype
    given = [tuple(found[i] for i in part.indices) for part in known.parts]
    parts = list(zip(known.parts, given, strict=True))
    if not all(_are_apart(part.sizes, part.params, own, dtype.itemsize) for part, own in parts):
        return False
    if dry_run:
        return True
    for part, own in parts:
        formats = [dtype, dtype, dtype if part.momentum_buffers else None, None]
        addresses = (part.params, own, part.momentum_buffers, (), part.masks)
        with launch_on(device):
            table = table_of_addresses(device, chunk_size(formats), part.sizes, addresses)
            update(table, formats, has_mask=bool(part.masks), **options)
    return True


def _read(plan: Tensor) -> _Plan:
    """The rows of csrc/step_plan.h: size, addresses of parameter, momentum and mask; 0 where there is none."""
    rows = plan.view(-1, 4).tolist()
    parts = []
    for has_mask in (True, False):
        if indices := tuple(i for i, row in enumerate(rows) if (row[3] != 0) is has_mask):
            sizes, params, buffers, masks = zip(*(rows[i] for i in indices), strict=True)
            parts.append(_Part(indices, sizes, params, buffers if any(buffers) else (), masks if has_mask else ()))
    return _Plan([row[0] for row in rows], tuple(parts))


def _are_plain(grads: Sequence[Tensor], sizes: list[int]) -> bool:
    """Whether all are of the first one's dtype and device, and laid out as their contiguous parameters are."""
    forms = set(map(attrgetter("dtype", "layout"), grads))
    return (
        forms == {(grads[0].dtype, torch.strided)}
        and list(map(Tensor.numel, grads)) == sizes
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
