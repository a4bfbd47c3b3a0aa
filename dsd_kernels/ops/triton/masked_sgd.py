"""The fused update: weights, momentum and mask in one pass over memory."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.triton.formats import FORMATS, decode, encode, load_weight_pointer
from dsd_kernels.ops.triton.launch import launch
from dsd_kernels.ops.triton.mask_words import load_mask_pointer, unpack_bits
from dsd_kernels.ops.triton.stochastic_rounding import encode_stochastically, lowbias32, rounding_key
from dsd_kernels.ops.triton.tables import (
    NARROW_TILE,
    NUM_WARPS,
    AddressTable,
    address_table,
    has_address,
    is_aligned,
    launch_on,
    locate_chunk,
    tile_size,
)

TILES_PER_CHUNK = 4
Formats = Sequence[torch.dtype | None]


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masks: Sequence[Tensor],
    copies: Sequence[Tensor],
    **options: Any,
) -> None:
    """One launch for all tensors.

    Passes: reads every parameter, gradient, momentum and mask once, writes every parameter, momentum and copy once.
    Synchronisation: none; `lr_tensor`, `grad_scale`, `found_inf` and `rounding_seed` are read by the kernel.
    """
    if not params:
        return
    formats = [tensors[0].dtype if tensors else None for tensors in (params, grads, momentum_buffers, copies)]
    with launch_on(params[0].device):
        table = address_table(chunk_size(formats), params, grads, momentum_buffers, copies, masks)
        update(table, formats, has_mask=bool(masks), **options)


def chunk_size(formats: Formats) -> int:
    """The weights of a program."""
    return _tile(formats) * TILES_PER_CHUNK


def update(
    table: AddressTable,
    formats: Formats,
    *,
    has_mask: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    mask_momentum: bool,
    lr_tensor: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    rounding_seed: Tensor | None = None,
) -> None:
    """Launch the kernel over a table whose chunks have the `chunk_size` of the formats.

    Args:
        table: of parameters, gradients, momentum, copies and masks, on the current device.
        formats: dtypes of the first four; None for a list that is empty.
        has_mask: whether any row of the table has a mask; the others' addresses are 0.
    """
    if table.n_chunks == 0:
        return
    param, grad, buffer, copy = (FORMATS[dtype].dtype if dtype else None for dtype in formats)
    launch(
        masked_sgd_kernel,
        table.n_chunks,
        table.rows,
        table.chunks,
        lr,
        momentum,
        1 - dampening,
        weight_decay,
        lr_tensor,
        grad_scale,
        found_inf,
        rounding_seed,
        COMPUTE=FORMATS[formats[0]].compute,  # type: ignore[index]
        PARAM=param,
        GRAD=grad,
        BUFFER=buffer,
        COPY=copy,
        HAS_MASK=has_mask,
        HAS_WEIGHT_DECAY=weight_decay != 0,
        NESTEROV=nesterov,
        MAXIMIZE=maximize,
        MASK_MOMENTUM=mask_momentum,
        CHUNK=chunk_size(formats),
        TILE=_tile(formats),
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )


def _tile(formats: Formats) -> int:
    """By the widest values: with more of them a thread, their accesses would need another layout than the others'."""
    return tile_size(max(dtype.itemsize for dtype in formats if dtype))


@triton.jit
def masked_sgd_kernel(
    rows,
    chunks,
    lr: tl.float64,
    momentum: tl.float64,
    one_minus_dampening: tl.float64,
    weight_decay: tl.float64,
    lr_tensor,
    grad_scale,
    found_inf,
    rounding_seed,
    COMPUTE: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BUFFER: tl.constexpr,
    COPY: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WEIGHT_DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    MASK_MOMENTUM: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Update one chunk of one tensor. BUFFER and COPY are None where there are none.

    Passes: every value is read once and written once. Synchronisation: none.
    """
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    if lr_tensor is not None:
        lr = tl.load(lr_tensor)
    # a factor of -1 throughout: Triton's unary minus is 0 - x, which loses the sign of zero
    minus_lr = tl.full((), lr, COMPUTE) * -1.0
    grad_factor = tl.full((), -1.0 if MAXIMIZE else 1.0, COMPUTE)
    if grad_scale is not None:
        grad_factor *= (1.0 / tl.load(grad_scale).to(tl.float64)).to(COMPUTE)
    momentum = tl.full((), momentum, COMPUTE)
    one_minus_dampening = tl.full((), one_minus_dampening, COMPUTE)
    weight_decay = tl.full((), weight_decay, COMPUTE)
    scalars = (minus_lr, momentum, one_minus_dampening, weight_decay, grad_factor)

    tensor, row, start, count = locate_chunk(rows, chunks, tl.program_id(0), CHUNK)
    rounding = None
    if rounding_seed is not None:
        rounding = (rounding_key(tl.load(rounding_seed), tensor), start.to(tl.uint32))
    aligned = _pointers(row, start, PARAM, GRAD, BUFFER, COPY, 16, 32)
    unaligned = _pointers(row, start, PARAM, GRAD, BUFFER, COPY, 1, 8)
    is_masked = has_address(row, 5)
    are_aligned = is_aligned(row)
    first = 0
    while first < count:
        if are_aligned & (first + TILE <= count):
            _update_tile(
                aligned, is_masked, scalars, rounding, first, None,
                PARAM, GRAD, BUFFER, COPY, HAS_MASK, HAS_WEIGHT_DECAY, NESTEROV, MASK_MOMENTUM, 32, TILE,
            )  # fmt: skip
            first += TILE
        else:
            _update_tile(
                unaligned, is_masked, scalars, rounding, first, count,
                PARAM, GRAD, BUFFER, COPY, HAS_MASK, HAS_WEIGHT_DECAY, NESTEROV, MASK_MOMENTUM, 8, NARROW_TILE,
            )  # fmt: skip
            first += NARROW_TILE


@triton.jit
def _pointers(
    row,
    start,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BUFFER: tl.constexpr,
    COPY: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    WORD: tl.constexpr,
):
    return (
        load_weight_pointer(row, 1, PARAM, ALIGNMENT) + start,
        load_weight_pointer(row, 2, GRAD, ALIGNMENT) + start,
        load_weight_pointer(row, 3, BUFFER, ALIGNMENT) + start,
        load_weight_pointer(row, 4, COPY, ALIGNMENT) + start,
        load_mask_pointer(row, 5, WORD) + start // WORD,
    )


@triton.jit
def _update_tile(
    pointers,
    is_masked,
    scalars,
    rounding,
    first,
    count,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BUFFER: tl.constexpr,
    COPY: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WEIGHT_DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    MASK_MOMENTUM: tl.constexpr,
    WORD: tl.constexpr,
    TILE: tl.constexpr,
):
    """Load, update, select and store the weights from `first` on: all of them, or up to `count` if it is given."""
    param_ptr, grad_ptr, buffer_ptr, copy_ptr, mask_ptr = pointers
    # One row per mask word. With fewer words than threads Triton loads them in the layout of the weights.
    word = first // WORD + tl.arange(0, TILE // WORD)[:, None]
    weight = word * WORD + tl.arange(0, WORD)[None, :]
    exists = None
    has_word = is_masked
    if count is not None:
        exists = weight < count
        has_word = is_masked & (word * WORD < count)

    param = decode(tl.load(param_ptr + weight, mask=exists), PARAM)
    if COPY is not None:
        copy = tl.load(copy_ptr + weight, mask=exists)
        param = tl.where(encode(param, COPY) == copy, param, decode(copy, COPY))
    grad = decode(tl.load(grad_ptr + weight, mask=exists), GRAD)
    buffer = param
    if BUFFER is not None:
        buffer = decode(tl.load(buffer_ptr + weight, mask=exists), BUFFER)
    param, buffer = _sgd_update(param, grad, buffer, scalars, BUFFER is not None, HAS_WEIGHT_DECAY, NESTEROV)
    if HAS_MASK:
        words = tl.load(mask_ptr + word, mask=has_word, other=(1 << WORD) - 1)
        keep = unpack_bits(words, WORD)
        param = tl.where(keep, param, 0.0)
        if MASK_MOMENTUM:
            buffer = tl.where(keep, buffer, 0.0)
    if rounding is None:
        bits = encode(param, PARAM)
    else:
        key, start = rounding
        bits = encode_stochastically(param, lowbias32((start + weight.to(tl.uint32)) ^ key), PARAM)
    tl.store(param_ptr + weight, bits, mask=exists)
    if BUFFER is not None:
        tl.store(buffer_ptr + weight, encode(buffer, BUFFER), mask=exists)
    if COPY is not None:
        tl.store(copy_ptr + weight, encode(param, COPY), mask=exists)


@triton.jit
def _sgd_update(
    param, grad, buffer, scalars, HAS_MOMENTUM: tl.constexpr, HAS_WEIGHT_DECAY: tl.constexpr, NESTEROV: tl.constexpr
):
    """The formula of reference.sgd_update, with a fused multiply-add where it has `add(x, alpha=a)`."""
    minus_lr, momentum, one_minus_dampening, weight_decay, grad_factor = scalars
    grad = grad * grad_factor
    if HAS_WEIGHT_DECAY:
        grad = tl.fma(param, weight_decay, grad)
    update = grad
    if HAS_MOMENTUM:
        buffer = tl.fma(grad, one_minus_dampening, buffer * momentum)
        update = buffer
        if NESTEROV:
            update = tl.fma(buffer, momentum, grad)
    return tl.fma(update, minus_lr, param), buffer
