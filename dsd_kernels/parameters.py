"""What a parameter must be to be stepped, pruned or masked, and how it is brought into the form that the ops take."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.ops.checks import FLOAT_DTYPES, GRAD_DTYPES
from dsd_kernels.ops.layout import is_dense, may_overlap
from dsd_kernels.shards import check_shard, is_sharded, local


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
    if is_sharded(mask) and not is_sharded(p):
        raise TypeError(f"masks: expected a plain tensor for {name}, which is one, got a {type(mask).__name__}")
    if p.layout != torch.strided:
        raise TypeError(f"masks: expected strided parameters, {name} is in layout {p.layout}")
    check_memory(name, p)


def has_memory(p: Tensor) -> bool:
    """Whether the tensor is one block of memory that kernels can address: no wrapper, fake or meta tensor."""
    return type(p).__torch_dispatch__ is Tensor.__torch_dispatch__ and p.device.type != "meta"


def why_loop_group(group: dict[str, Any]) -> str:
    """Why torch's own loop must take a group: it is differentiated through, or needs the host's numbers; or empty."""
    if group["differentiable"]:
        return "differentiable"
    if isinstance(group["weight_decay"], Tensor):
        return "weight_decay as a tensor"
    if isinstance(group["lr"], Tensor) and group["lr"].requires_grad:
        return "a learning rate that requires grad"
    return ""


def why_loop(p: Tensor, grad: Tensor, buffer: Tensor | None, careful: bool) -> str:
    """Why torch's own loop must take a parameter, or empty where the fused op does; of a DTensor all are local.

    `careful` is a half-precision parameter whose group asks for more than torch gives: dtypes may differ then.
    """
    if p.dtype not in FLOAT_DTYPES:
        return f"weights of {p.dtype}"
    if grad.layout != torch.strided or (buffer is not None and buffer.layout != torch.strided):
        return "sparse gradients"
    if grad.dtype != p.dtype and not (careful and grad.dtype in GRAD_DTYPES[p.dtype]):
        return f"gradients of {grad.dtype} for weights of {p.dtype}"
    if buffer is not None and buffer.dtype != p.dtype and not (careful and buffer.dtype in FLOAT_DTYPES):
        return f"momentum of {buffer.dtype} for weights of {p.dtype}"
    if torch.compiler.is_compiling():
        return ""
    if grad._is_zerotensor():
        return "gradients without memory"
    return "" if type(p).__torch_dispatch__ is Tensor.__torch_dispatch__ else f"a {type(p).__name__}"


def to_device(scalar: Tensor | None, device: torch.device) -> Tensor | None:
    """A hyper-parameter tensor where the kernel can read it."""
    if scalar is None:
        return None
    dtype = scalar.dtype if scalar.dtype in (torch.float32, torch.float64) else torch.float32
    return scalar.to(device, dtype, non_blocking=True)


def check_memory(name: str, p: Tensor) -> None:
    """Raise for what cannot be masked: it is no memory of its own, or lies over itself."""
    if is_sharded(p):
        check_shard(name, p)
        p = local(p)
    if type(p).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(f"masks: expected tensors or DTensors, {name} is a {type(p).__name__}, which is not supported")
    if may_overlap(p):
        raise RuntimeError(
            f"unsupported operation: elements of {name} of shape {tuple(p.shape)} with strides {p.stride()} share "
            "memory; clone() it before you optimize it"
        )


def _block(tensor: Tensor) -> tuple[int, int]:
    """The addresses between which the tensor's elements lie."""
    start = tensor.data_ptr()
    if tensor.is_contiguous() or tensor.numel() == 0:
        return start, start + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.itemsize


def blocks_meet(params: Sequence[Tensor]) -> bool:
    """Whether one is listed twice, or the memory of two may meet: updated together, they would race."""
    if len(set(map(id, params))) < len(params):
        return True
    if torch.compiler.is_compiling():  # which has no addresses
        return False
    blocks = sorted(_block(p) for p in params if p.layout == torch.strided and has_memory(p))
    return any(start < end for (_, end), (start, _) in pairwise(blocks))


def sharing(params: Sequence[Tensor]) -> list[Tensor]:
    """Those that have an element in common with another; interleaved ones have none."""
    if not blocks_meet(params):
        return []
    plain = [p for p in params if p.layout == torch.strided and has_memory(p)]
    addresses = [_element_addresses(p) for p in plain]
    values, counts = torch.cat(addresses).unique(return_counts=True)
    common = values[counts > 1]
    return [p for p, own in zip(plain, addresses, strict=True) if bool(torch.isin(own, common).any())]


def _element_addresses(p: Tensor) -> Tensor:
    addresses = torch.tensor([p.data_ptr()], device="cpu")
    for size, stride in zip(p.shape, p.stride(), strict=True):
        addresses = (addresses[:, None] + torch.arange(size, device="cpu") * (stride * p.itemsize)).flatten()
    return addresses


def check_grads_apart(params: Sequence[Tensor]) -> None:
    """Raise for a gradient that lies shifted over its parameter: it would be read after it was written."""
    for p in params:
        grad = p.grad
        if grad is None or grad.layout != torch.strided or not has_memory(grad) or not has_memory(p):
            continue
        (start, end), (grad_start, grad_end) = _block(p), _block(grad)
        if start != grad_start and start < grad_end and grad_start < end:
            raise RuntimeError(
                f"unsupported operation: the gradient of a parameter of shape {tuple(p.shape)} shares a part of its "
                "memory; clone() it"
            )


def dense(p: Tensor) -> Tensor:
    """The parameter (of a DTensor the local one), or a dense copy of one that has gaps in memory."""
    if p.is_contiguous() or is_dense(p):
        return p
    check_memory("a parameter", p)
    return torch.empty_like(p, requires_grad=False).copy_(p.detach())
