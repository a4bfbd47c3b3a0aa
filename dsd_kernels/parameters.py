"""What a parameter must be to be stepped, pruned or masked, and how it is brought into the form that the ops take."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.ops.checks import FLOAT_DTYPES, GRAD_DTYPES, MOMENTUM_DTYPES
from dsd_kernels.ops.layout import is_dense, may_overlap


def as_list(params: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(params, Tensor):
        return [params]
    if not isinstance(params, Iterable):
        raise TypeError(f"params: expected a parameter or a list of parameters, got {params!r}")
    return list(params)


def check_mask(name: str, p: Tensor, mask: object) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"masks: expected a bool tensor for {name}, got {type(mask).__name__}")
    if mask.dtype != torch.bool or mask.layout != torch.strided:
        raise TypeError(f"masks: expected dtype torch.bool for {name}, got {mask.dtype} in layout {mask.layout}")
    if mask.shape != p.shape:
        raise ValueError(f"masks: expected shape {tuple(p.shape)} for {name}, got {tuple(mask.shape)}")
    if mask.device != p.device:
        raise ValueError(f"masks: expected device {p.device} for {name}, got {mask.device}")
    if p.layout != torch.strided:
        raise TypeError(f"masks: expected strided parameters, {name} is in layout {p.layout}")
    check_no_overlap(name, p)


def needs_loop(group: dict[str, Any]) -> bool:
    """Whether torch's own loop must take the group: it is differentiated through, or needs the host's numbers."""
    lr = group["lr"]
    return (
        bool(group["differentiable"])
        or isinstance(group["weight_decay"], Tensor)
        or (isinstance(lr, Tensor) and lr.requires_grad)
    )


def fits(p: Tensor, buffer: Tensor | None, careful: bool) -> bool:
    """Whether the fused op takes the parameter: dtypes that go together, and in memory as it seems to be.

    `careful` is a half-precision parameter whose group asks for more than torch gives: dtypes may differ then.
    """
    grad = p.grad
    return (
        p.dtype in FLOAT_DTYPES
        and grad is not None
        and (grad.dtype == p.dtype or (careful and grad.dtype in GRAD_DTYPES[p.dtype]))
        and grad.layout == torch.strided
        and (buffer is None or buffer.dtype == p.dtype or (careful and buffer.dtype in MOMENTUM_DTYPES[p.dtype]))
        and (torch.compiler.is_compiling() or not grad._is_zerotensor())  # one without memory behind it
    )


def to_device(scalar: Tensor | None, device: torch.device) -> Tensor | None:
    """A hyper-parameter tensor where the kernel can read it."""
    if scalar is None:
        return None
    dtype = scalar.dtype if scalar.dtype in (torch.float32, torch.float64) else torch.float32
    return scalar.to(device, dtype, non_blocking=True)


def check_no_overlap(name: str, p: Tensor) -> None:
    if may_overlap(p):
        raise RuntimeError(
            f"unsupported operation: elements of {name} of shape {tuple(p.shape)} with strides {p.stride()} share "
            "memory; clone() it before you optimize it"
        )


def share_memory(params: Sequence[Tensor]) -> bool:
    """Whether one is listed twice, or two lie over each other in memory: updated together, they would race."""
    if len(set(map(id, params))) < len(params):
        return True
    if torch.compiler.is_compiling():  # which has no addresses
        return False
    blocks = sorted(
        (p.data_ptr(), p.data_ptr() + p.nbytes) for p in params if p.layout == torch.strided and is_dense(p)
    )
    return any(start < end for (_, end), (start, _) in pairwise(blocks))


def dense(p: Tensor) -> Tensor:
    """The parameter, or a dense copy of one that has gaps in memory."""
    if p.is_contiguous() or is_dense(p):
        return p
    check_no_overlap("a parameter", p)
    return torch.empty_like(p, requires_grad=False).copy_(p.detach())
