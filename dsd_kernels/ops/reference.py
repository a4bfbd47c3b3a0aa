"""What each op means, in eager PyTorch: the truth that every other backend is tested against.

Registered for every device. Written to be read; a mask costs memory here that the kernels do not need. Reads device
scalars (`lr_tensor`, `grad_scale`, `found_inf`, `rounding_seed`) on the host, which the kernels do not.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from dsd_kernels.ops.layout import densify, memory_order, packed_bytes

DIGIT_BITS = 8
_GLOBAL_DIGIT_BITS = 16  # two rounds over float32 weights; a histogram of 65,536 counts
_GLOBAL_CHUNK = 1 << 20  # weights whose keys exist at the same time
_LOW_32_BITS = 0xFFFFFFFF
_Bits = TypeVar("_Bits", int, Tensor)
_KEY_VIEWS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def sgd_update(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> tuple[Tensor, Tensor | None]:
    """The SGD update of torch.optim.SGD(foreach=False), out of place: the one Python copy of the formula.

    `add(x, alpha=a)` is one fused multiply-add and `mul` rounds on its own; the kernels round in the same places.
    """
    if maximize:
        grad = -grad
    if weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    if momentum_buffer is not None:
        momentum_buffer = momentum_buffer.mul(momentum).add(grad, alpha=1 - dampening)
        grad = grad.add(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer
    return param.add(grad, alpha=-lr), momentum_buffer


def follow_copy(param: Tensor, copy: Tensor) -> Tensor:
    """Master weights, and the copy's value where that is not the rounded master: somebody else wrote it."""
    # by their bits: comparing values, torch.compile leaves the rounding out
    same = param.to(copy.dtype).view(torch.int16) == copy.view(torch.int16)
    return torch.where(same, param, copy.to(param.dtype))


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masks: Sequence[Tensor],
    copies: Sequence[Tensor],
    *,
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
    if found_inf is not None and found_inf.item() != 0:
        return
    if lr_tensor is not None:
        lr = lr_tensor.item()
    for i, param in enumerate(params):
        compute_dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        grad = grads[i].to(compute_dtype)
        if grad_scale is not None:
            grad = grad * grad_scale.double().reciprocal().to(compute_dtype)
        old_param = param.to(compute_dtype)
        if copies:
            old_param = follow_copy(old_param, copies[i])
        new_param, new_buffer = sgd_update(
            old_param,
            grad,
            momentum_buffers[i].to(compute_dtype) if momentum_buffers else None,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )
        if masks:
            keep = _unpack_like(masks[i], param)
            new_param = torch.where(keep, new_param, 0.0)
            if new_buffer is not None and mask_momentum:
                new_buffer = torch.where(keep, new_buffer, 0.0)
        if copies:
            copies[i].copy_(new_param)
        if rounding_seed is not None:
            new_param = round_stochastically(new_param, param.dtype, int(rounding_seed.item()), i)
        param.copy_(new_param)
        if new_buffer is not None:
            momentum_buffers[i].copy_(new_buffer)


def planned_sgd_(plan: Tensor, grads: Sequence[Tensor], **options: object) -> bool:  # noqa: ARG001
    """Whether the step was done as planned; the reference keeps no plan."""
    return False


def lowbias32(x: _Bits) -> _Bits:
    """A hash of 32-bit integers, held in wider ones, by Chris Wellons (https://nullprogram.com/blog/2018/07/31/)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _LOW_32_BITS
    x = (x ^ (x >> 15)) * 0x846CA68B & _LOW_32_BITS
    return x ^ (x >> 16)


def random_bits(like: Tensor, seed: int, ordinal: int) -> Tensor:
    """32 bits a weight: a hash of the seed, the tensor's place in its list, and the weight's in memory order."""
    low, high = seed & _LOW_32_BITS, seed >> 32 & _LOW_32_BITS
    key = lowbias32(lowbias32(low + ordinal * 0x9E3779B9 & _LOW_32_BITS) ^ high)
    weight = torch.arange(like.numel(), device=like.device)
    bits = torch.empty_like(like, dtype=torch.int64)
    memory_order(bits).copy_(lowbias32(weight & _LOW_32_BITS ^ key))
    return bits


def round_stochastically(values: Tensor, dtype: torch.dtype, seed: int, ordinal: int) -> Tensor:
    """float32 values as bfloat16 or float16: the neighbour above with a probability of the distance to that below.

    The magnitude, as a fixed-point number that counts values of the dtype in 16 binary places, plus 16 random bits,
    truncated. A float16 denormal has more places; these are truncated first.
    """
    magnitude = (values.view(torch.int32) & 0x7FFFFFFF).long()
    noise = random_bits(values, seed, ordinal) & 0xFFFF
    if dtype == torch.bfloat16:
        rounded, infinity, quiet_nan = magnitude + noise >> 16, 0x7F80, 0x7FC0
    else:
        exponent, significand = magnitude >> 23, magnitude & 0x7FFFFF | 0x800000
        fixed_point = (significand << 3) >> (113 - exponent).clamp(0, 31)
        binade = (exponent - 113).clamp(min=0) << 10
        rounded, infinity, quiet_nan = binade + (fixed_point + noise >> 16), 0x7C00, 0x7E00
    rounded = rounded.clamp(max=infinity)
    signed = torch.where(values.view(torch.int32) < 0, rounded - 0x8000, rounded)
    return torch.where(values.isnan(), quiet_nan, signed).to(torch.int16).view(dtype)


def magnitude_keys(tensor: Tensor) -> Tensor:
    """Integers (int64, flat, in memory order) that order weights by magnitude: the bits without the sign, one NaN."""
    bits = memory_order(tensor).view(_KEY_VIEWS[tensor.dtype])
    keys = bits.bitwise_and(torch.iinfo(bits.dtype).max).long()
    return keys.clamp_(max=_nan_key(tensor.dtype))


def _nan_key(dtype: torch.dtype) -> int:
    infinity = torch.tensor(torch.inf, dtype=dtype, device="cpu")
    return int(infinity.view(_KEY_VIEWS[dtype]).item()) + 1


def has_key(tensor: Tensor, key: Tensor) -> Tensor:
    """Which weights have a magnitude key, without making the keys of all."""
    value = key.to(_KEY_VIEWS[tensor.dtype]).view(tensor.dtype)
    return (tensor.abs() == value) | (tensor.isnan() & (key == _nan_key(tensor.dtype)))


def kth_key(keys: Tensor, k: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The k-th smallest key by radix digits, and how many of the keys equal to it belong to the k smallest."""
    key_bits = dtype.itemsize * 8 - 1
    prefix = torch.zeros((), dtype=torch.int64, device=keys.device)
    remaining = k.clamp(0, keys.numel())
    n_bins = 1 << DIGIT_BITS
    for shift in range((key_bits - 1) // DIGIT_BITS * DIGIT_BITS, -1, -DIGIT_BITS):
        digits = (keys >> shift) & (n_bins - 1)
        candidates = (keys >> shift >> DIGIT_BITS) == prefix
        counts = torch.zeros(n_bins, dtype=torch.int64, device=keys.device).scatter_add_(0, digits, candidates.long())
        up_to = counts.cumsum(0)
        digit = (up_to < remaining).sum()
        remaining = remaining - torch.take(up_to - counts, digit)
        prefix = (prefix << DIGIT_BITS) | digit
    return prefix, remaining


def kth_magnitude(tensors: Sequence[Tensor], k: Tensor) -> Tensor:
    if not tensors:
        return torch.empty(0, dtype=torch.float32, device=k.device)
    out_dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    out = torch.empty(len(tensors), dtype=out_dtype, device=tensors[0].device)
    for i, tensor in enumerate(tensors):
        key, _ = kth_key(magnitude_keys(tensor), k[i], tensor.dtype)
        value = key.to(_KEY_VIEWS[tensor.dtype]).view(tensor.dtype).to(out_dtype)
        value = torch.where(key == _nan_key(tensor.dtype), torch.nan, value)
        # clamp as kth_key does: with no weights, or k <= 0, there is no k-th one
        out[i] = torch.where(k[i].clamp(0, tensor.numel()) == 0, -torch.inf, value)
    return out


def prune_(params: Sequence[Tensor], momentum_buffers: Sequence[Tensor], masks: Sequence[Tensor], k: Tensor) -> None:
    for i, param in enumerate(params):
        keys = magnitude_keys(param)
        threshold, n_ties = kth_key(keys, k[i], param.dtype)
        tie = keys == threshold
        keep = (keys > threshold) | (tie & (tie.cumsum(0) > n_ties))
        masks[i].copy_(_pack(keep))
        memory_order(param).masked_fill_(~keep, 0.0)
        if momentum_buffers:
            memory_order(momentum_buffers[i]).masked_fill_(~keep, 0.0)


def global_counts(tensors: Sequence[Tensor], k: Tensor) -> Tensor:
    """Beyond what the op takes, tensors may have gaps and differ in dtype and device."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
    threshold, n_ties = _global_threshold(tensors, k, dtype)
    below, equal = torch.stack([_below_and_equal(t, dtype, threshold) for t in tensors], dim=1).unbind()
    return counts_in_pool(below, equal, n_ties)


def counts_in_pool(below: Tensor, equal: Tensor, n_ties: Tensor) -> Tensor:
    """What of each tensor is pruned by a threshold of all: what is below it, and n_ties, of earlier tensors first."""
    ties_before = equal.cumsum(0) - equal
    return below + (n_ties - ties_before).clamp(min=0).minimum(equal)


def magnitude_histogram(tensors: Sequence[Tensor], prefixes: Tensor, shift: int) -> Tensor:
    counts = torch.zeros(len(tensors), 1 << DIGIT_BITS, dtype=torch.int64, device=prefixes.device)
    for row, prefix, tensor in zip(counts, prefixes, tensors, strict=True):
        for chunk in torch.split(memory_order(tensor), _GLOBAL_CHUNK):
            digits = magnitude_keys(chunk) >> shift
            counted = digits >> DIGIT_BITS == prefix
            row.scatter_add_(0, digits & ((1 << DIGIT_BITS) - 1), counted.long())
    return counts


def _global_threshold(tensors: Sequence[Tensor], k: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The k-th smallest key of all tensors, and how many keys equal to it belong to the k smallest."""
    device = tensors[0].device
    key_bits = dtype.itemsize * 8 - 1
    prefix = torch.zeros((), dtype=torch.int64, device=device)
    remaining = k.clamp(0, sum(tensor.numel() for tensor in tensors))
    for shift in range((key_bits - 1) // _GLOBAL_DIGIT_BITS * _GLOBAL_DIGIT_BITS, -1, -_GLOBAL_DIGIT_BITS):
        counts = torch.zeros(1 << _GLOBAL_DIGIT_BITS, dtype=torch.int64, device=device)
        for tensor in tensors:
            counts += _histogram(tensor, dtype, prefix.to(tensor.device), shift).to(device)
        up_to = counts.cumsum(0)
        digit = (up_to < remaining).sum()
        remaining = remaining - torch.take(up_to - counts, digit)
        prefix = (prefix << _GLOBAL_DIGIT_BITS) | digit
    return prefix, remaining


def _histogram(tensor: Tensor, dtype: torch.dtype, prefix: Tensor, shift: int) -> Tensor:
    """Counts of the digit at `shift` among the keys whose higher digits are `prefix`."""
    counts = torch.zeros(1 << _GLOBAL_DIGIT_BITS, dtype=torch.int64, device=tensor.device)
    for keys in _key_chunks(tensor, dtype):
        candidates = (keys >> shift >> _GLOBAL_DIGIT_BITS) == prefix
        counts.scatter_add_(0, (keys >> shift) & ((1 << _GLOBAL_DIGIT_BITS) - 1), candidates.long())
    return counts


def _below_and_equal(tensor: Tensor, dtype: torch.dtype, threshold: Tensor) -> Tensor:
    """How many keys of a tensor lie below the threshold, and how many equal it; on the threshold's device."""
    local = threshold.to(tensor.device)
    chunks = [torch.stack([(keys < local).sum(), (keys == local).sum()]) for keys in _key_chunks(tensor, dtype)]
    return torch.stack(chunks).sum(0).to(threshold.device)


def _key_chunks(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The magnitude keys of a tensor as one of the wider dtype, a chunk at a time."""
    [dense] = densify([tensor])
    for chunk in torch.split(memory_order(dense), _GLOBAL_CHUNK):
        yield magnitude_keys(chunk.to(dtype))


def pack_mask(masks: Sequence[Tensor]) -> list[Tensor]:
    return [_pack(memory_order(mask)) for mask in masks]


def unpack_mask(packed: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    return [_unpack_like(bits, tensor) for bits, tensor in zip(packed, like, strict=True)]


def _bit_values(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


def _pack(keep: Tensor) -> Tensor:
    padded = torch.zeros(packed_bytes(keep.numel()) * 8, dtype=torch.uint8, device=keep.device)
    padded[: keep.numel()] = keep
    return (padded.view(-1, 8) * _bit_values(keep.device)).sum(1, dtype=torch.uint8)


def _unpack_like(packed: Tensor, like: Tensor) -> Tensor:
    bits = (packed[:, None] & _bit_values(packed.device)) != 0
    mask = torch.empty_like(like, dtype=torch.bool)
    memory_order(mask).copy_(bits.flatten()[: like.numel()])
    return mask
