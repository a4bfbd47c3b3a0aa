"""The contract: what every op is called, takes, checks and returns. Backends only implement.

The schemas are list schemas: one call serves all tensors of a step. `[]` means none. The reference is registered for
every device; `backends` binds the compiled extension and Triton over it. Tensors are addressed in memory order
(layout.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.ops import backends, reference
from dsd_kernels.ops.checks import (
    check_global_counts,
    check_k_values,
    check_kth_magnitude,
    check_lists,
    check_magnitude_histogram,
    check_masked_sgd,
    check_pack_mask,
    check_prune,
    check_seed,
    check_unpack_mask,
)
from dsd_kernels.ops.layout import align, densify, packed_bytes
from dsd_kernels.ops.transfer import on_device

__all__ = ["kth_magnitude", "masked_sgd_", "pack_mask", "prune_", "unpack_mask"]

_library = torch.library.Library("dsd_kernels", "DEF")
# The kernels address memory, so torch.compile must hand them the strides it promised.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library.define(
    "masked_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor[] masks, "
    "Tensor(c!)[] copies, *, "
    "float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, bool mask_momentum, "
    "Tensor? lr_tensor=None, Tensor? grad_scale=None, Tensor? found_inf=None, Tensor? rounding_seed=None) -> ()",
    tags=_TAGS,
)
# For MaskedSGD alone, which keeps a plan of the addresses of its lists and looks after them: only gradients go through
# the dispatcher. False, and nothing done, where one is not of the planned kind, or the backend keeps no plan.
_library.define(
    "planned_sgd_(Tensor plan, Tensor[] grads, *, bool dry_run, "
    "float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, bool mask_momentum, "
    "Tensor? lr_tensor=None, Tensor? grad_scale=None, Tensor? found_inf=None) -> bool",
    tags=_TAGS,
)
_library.define("kth_magnitude(Tensor[] tensors, Tensor k) -> Tensor", tags=_TAGS)
# The counts of all tensors for one k; the public call is global_selection.global_counts.
_library.define("global_counts(Tensor[] tensors, Tensor k) -> Tensor", tags=_TAGS)
# For selection over shards (shard_selection): per tensor, the counts of an 8-bit digit of the keys whose higher digits
# are its prefix. Those of all ranks' shards add up to those of the whole tensor.
_library.define("magnitude_histogram(Tensor[] tensors, Tensor prefixes, int shift) -> Tensor", tags=_TAGS)
# The masks are written in place, not returned: addresses stay for captured graphs, and torch.compile cannot
# functionalise an op that both mutates and returns a list.
_library.define(
    "prune_(Tensor(a!)[] params, Tensor(b!)[] momentum_buffers, Tensor(c!)[] masks, Tensor k) -> ()", tags=_TAGS
)
_library.define("pack_mask(Tensor[] masks) -> Tensor[]", tags=_TAGS)
_library.define("unpack_mask(Tensor[] packed, Tensor[] like) -> Tensor[]", tags=_TAGS)

for _name in backends.OPS:
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    # none is differentiable; torch's own fallback would look at every tensor of every list to say so
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")


@torch.library.register_fake("dsd_kernels::masked_sgd_", lib=_library)
def _(params, grads, momentum_buffers, masks, copies, **options):  # type: ignore[no-untyped-def]
    check_masked_sgd(params, grads, momentum_buffers, masks, copies, **options)


@torch.library.register_fake("dsd_kernels::planned_sgd_", lib=_library)
def _(plan, grads, **options):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return False


@torch.library.register_fake("dsd_kernels::kth_magnitude", lib=_library)
def _(tensors, k):  # type: ignore[no-untyped-def]
    check_kth_magnitude(tensors, k)
    is_double = bool(tensors) and tensors[0].dtype == torch.float64
    return k.new_empty((len(tensors),), dtype=torch.float64 if is_double else torch.float32)


@torch.library.register_fake("dsd_kernels::global_counts", lib=_library)
def _(tensors, k):  # type: ignore[no-untyped-def]
    check_global_counts(tensors, k)
    return k.new_empty((len(tensors),))


@torch.library.register_fake("dsd_kernels::magnitude_histogram", lib=_library)
def _(tensors, prefixes, shift):  # type: ignore[no-untyped-def]
    check_magnitude_histogram(tensors, prefixes, shift)
    return prefixes.new_empty((len(tensors), 1 << reference.DIGIT_BITS))


@torch.library.register_fake("dsd_kernels::prune_", lib=_library)
def _(params, momentum_buffers, masks, k):  # type: ignore[no-untyped-def]
    check_prune(params, momentum_buffers, masks, k)


@torch.library.register_fake("dsd_kernels::pack_mask", lib=_library)
def _(masks):  # type: ignore[no-untyped-def]
    check_pack_mask(masks)
    return [mask.new_empty((packed_bytes(mask.numel()),), dtype=torch.uint8) for mask in masks]


@torch.library.register_fake("dsd_kernels::unpack_mask", lib=_library)
def _(packed, like):  # type: ignore[no-untyped-def]
    check_unpack_mask(packed, like)
    return [torch.empty_like(tensor, dtype=torch.bool) for tensor in like]


backends.bind()


@torch.no_grad()
def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] = (),
    masks: Sequence[Tensor] = (),
    copies: Sequence[Tensor] = (),
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    mask_momentum: bool = True,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    rounding_seed: int | Tensor | None = None,
) -> None:
    """One SGD step over a list of tensors, with the mask kept, in one pass over memory.

    ``g = grad + weight_decay * p;  m = momentum * m + (1 - dampening) * g;  p = select(mask, p - lr * m, +0)``;
    with Nesterov ``p - lr * (g + momentum * m)``; without momentum ``p - lr * g``.

    Args:
        params: dense tensors of one dtype (float32, float64, bfloat16, float16) on one device; updated in place.
        grads: one per parameter, of its shape and device; any strides; never written. One dtype for all: that of the
            parameters, or any of float32, bfloat16 and float16 where that is one of these.
        momentum_buffers: one per parameter, laid out as it is, updated in place; empty for `momentum` 0. One dtype for
            all: that of the parameters, or float32 beside bfloat16 and float16. A first step (buffer = gradient,
            undampened, as torch has it) is a call with `dampening` 0 over buffers of -0.0.
        masks: one packed mask per parameter (see `pack_mask`), or empty for an unmasked update.
        copies: one bfloat16 or float16 tensor per float32 parameter, all of one dtype, laid out as it is: receives the
            updated and masked weights in the same pass. The model computes with the copies then, and the parameters are
            its master weights. A copy that is not its parameter rounded was written by others (a checkpoint, an
            average): its value is the parameter's then. Default empty.
        lr: learning rate; a one-element tensor on the parameters' device is read there, by the kernel.
        momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD. Default 0, 0, 0, False, False.
        mask_momentum: also select the momentum, so that pruned weights have momentum +0. Default True.
        grad_scale: one element by which gradients are divided (multiplied by its reciprocal). Default None.
        found_inf: one element; if it is not 0, nothing changes at all. Default None.
        rounding_seed: round bfloat16 or float16 parameters stochastically by this int64 seed, which should be another
            one at each call; a one-element tensor on their device is read there, by the kernel. Default None.

    Raises:
        TypeError, ValueError: a list of the wrong length; a tensor of the wrong shape, dtype, device or strides; copies
            or a rounding seed for parameters that take none; a seed that is no 64-bit integer.

    Notes:
        Rounding: float32 arithmetic (float64 for float64), each stored value rounded once, to nearest even; bitwise
        torch.optim.SGD(foreach=False) in float32 and float64. Deterministic. No host synchronisation on a GPU, no
        allocation but copies of gradients whose strides differ from their parameter's.
        Stochastic rounding takes the upper of the two neighbours with the probability of the distance to the lower, in
        steps of 2^-16, and leaves a value that is representable as it is; so small updates add up on average, which
        rounding to nearest loses. The random bits are a hash of the seed, the tensor's place in the list and the
        weight's in memory order, the same on every backend; weights 2^32 apart in one tensor share them. Only
        parameters are rounded so, momentum is not.

    Source: torch.optim.SGD; the mask after every update: Han et al. 2017 (arXiv 1607.04381), algorithm 1; stochastic
        rounding: Gupta et al. 2015 (arXiv 1502.02551); its hash: lowbias32 by Chris Wellons.

    Example:
        >>> import torch
        >>> from dsd_kernels import masked_sgd_, pack_mask
        >>> weight, grad = torch.ones(4), torch.full((4,), 2.0)
        >>> mask = torch.tensor([True, False, True, False])
        >>> masked_sgd_([weight], [grad], masks=pack_mask([mask]), lr=0.25)
        >>> weight
        tensor([0.5000, 0.0000, 0.5000, 0.0000])
    """
    check_lists(params=params, grads=grads, momentum_buffers=momentum_buffers, masks=masks, copies=copies)
    grads = align(grads, params)
    is_tensor = isinstance(lr, Tensor)
    options: dict[str, Any] = {
        "lr": 0.0 if is_tensor else lr,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "maximize": maximize,
        "mask_momentum": mask_momentum,
        "lr_tensor": lr if is_tensor else None,
        "grad_scale": grad_scale,
        "found_inf": found_inf,
        "rounding_seed": None if rounding_seed is None else seed_on_device(rounding_seed, params),
    }
    check_masked_sgd(params, grads, momentum_buffers, masks, copies, **options)
    if not params:
        return
    torch.ops.dsd_kernels.masked_sgd_(params, grads, momentum_buffers, masks, copies, **options)
    torch.autograd.graph.increment_version([*params, *momentum_buffers, *copies])


@torch.no_grad()
def kth_magnitude(tensors: Sequence[Tensor], k: Sequence[int] | Tensor) -> Tensor:
    """The exact k-th smallest magnitude of each tensor.

    ``out[i] = sort(|tensors[i]|)[k[i] - 1]``, and -inf for ``k[i] = 0``.

    Args:
        tensors: tensors of one dtype (float32, float64, bfloat16, float16) on one device, of any shape and strides.
        k: one integer in [0, n] per tensor, 1-based from the smallest; a list, or an int64 tensor.

    Returns:
        Tensor of shape (len(tensors),) on their device; float64 for float64 input, float32 otherwise.

    Raises:
        TypeError, ValueError: dtypes or devices that differ or are not supported; k of the wrong length or range.

    Notes:
        Exact and deterministic. Denormals are not flushed, -0 equals 0, NaN orders above Inf. A k tensor on a GPU is
        not read by the host (no synchronisation): values outside [0, n] are clamped.
        The compiled backend reads the weights once: a sample brackets the k-th magnitude and counts verify it. Where
        they refute it, a second sample does, with one more read, and where both mislead, radix digits, with a few. It
        keeps its memory for the next call, at most 64 MiB by each thread that calls and 1 MiB by each that works.

    Source: Floyd and Rivest 1975 (doi 10.1145/360680.360691), the bracket of a sample; radix selection; the threshold
        of Han et al. 2017 (arXiv 1607.04381), algorithm 1.

    Example:
        >>> import torch
        >>> from dsd_kernels import kth_magnitude
        >>> kth_magnitude([torch.tensor([-3.0, 0.5, 2.0]), torch.tensor([1.0, -1.0])], k=[2, 1])
        tensor([2., 1.])
    """
    check_lists(tensors=tensors)
    tensors = densify(tensors)
    k = k_on_device(k, tensors)
    check_kth_magnitude(tensors, k)
    return torch.ops.dsd_kernels.kth_magnitude(tensors, k)


@torch.no_grad()
def prune_(
    params: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] = (),
    *,
    k: Sequence[int] | Tensor,
    masks: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Prune exactly the k smallest magnitudes of each tensor: select, make the masks, zero weights and momentum.

    ``mask[i] = True for all but the k[i] smallest |params[i]|, ties by lowest index in memory order first``.

    Args:
        params: dense tensors of one dtype (float32, float64, bfloat16, float16) on one device, none
            twice; zeroed in place.
        momentum_buffers: one per parameter, laid out as it is, zeroed in place; or empty. Default empty.
        k: one integer in [0, n] per tensor, how many of its weights to prune; a list, or an int64 tensor.
        masks: packed masks to write into, one per parameter. Default: new ones.

    Returns:
        One packed mask per parameter (uint8, see `pack_mask`), True = keep.

    Raises:
        TypeError, ValueError: as for `kth_magnitude`, and for momentum that does not match its parameter.

    Notes:
        Exact: the set a stable sort of the magnitudes gives, on every backend. Pruned weights become +0.0. NaN orders
        above Inf and is kept. A k tensor on a GPU is not read by the host: values outside [0, n] are clamped. Selects
        as `kth_magnitude` does; then weights and momentum are read and written once, and the masks written.

    Source: Han et al. 2017 (arXiv 1607.04381), algorithm 1; its boundary case is fixed here by the order of ties.

    Example:
        >>> import torch
        >>> from dsd_kernels import prune_, unpack_mask
        >>> weight = torch.tensor([0.1, -3.0, 0.1, 2.0])
        >>> masks = prune_([weight], k=[1])
        >>> weight, unpack_mask(masks, [weight])[0]
        (tensor([ 0.0000, -3.0000,  0.1000,  2.0000]), tensor([False,  True,  True,  True]))
    """
    check_lists(params=params, momentum_buffers=momentum_buffers, masks=() if masks is None else masks)
    k = k_on_device(k, params)
    if masks is None:
        masks = [p.new_empty((packed_bytes(p.numel()),), dtype=torch.uint8) for p in params]
    check_prune(params, momentum_buffers, masks, k)
    if params:
        torch.ops.dsd_kernels.prune_(params, momentum_buffers, masks, k)
        torch.autograd.graph.increment_version([*params, *momentum_buffers, *masks])
    return list(masks)


def pack_mask(masks: Sequence[Tensor]) -> list[Tensor]:
    """Pack bool masks to one bit a weight.

    ``bit i % 8 of byte i // 8 = mask in memory order [i]``, padded with zeros to whole 64-bit words.

    Args:
        masks: dense bool tensors of any shape on one device, True = keep, laid out in memory as the parameters they
            belong to.

    Returns:
        One uint8 tensor of shape (8 * ceil(n / 64),) per mask, on its device.

    Raises:
        TypeError, ValueError: a mask that is not bool, not dense, or not on the device of the first.

    Notes:
        Deterministic, no synchronisation.

    Source: none; the layout is this library's own.

    Example:
        >>> import torch
        >>> from dsd_kernels import pack_mask
        >>> pack_mask([torch.tensor([True, False, True])])
        [tensor([5, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)]
    """
    check_lists(masks=masks)
    check_pack_mask(masks)
    return torch.ops.dsd_kernels.pack_mask(masks) if masks else []


def unpack_mask(packed: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Unpack masks of one bit a weight: the inverse of `pack_mask`.

    ``mask in memory order [i] = bit i % 8 of byte i // 8``.

    Args:
        packed: uint8 tensors of shape (8 * ceil(n / 64),), as `pack_mask` returns them.
        like: one dense tensor per mask, of any dtype, all on one device: its shape and strides are the result's.

    Returns:
        One bool tensor per mask, True = keep, with the shape and strides of its `like`.

    Raises:
        TypeError, ValueError: a packed mask of the wrong dtype, size or device; a `like` that is not dense, or not on
            the device of the first.

    Notes:
        Deterministic, no synchronisation.

    Source: none; the layout is this library's own.

    Example:
        >>> import torch
        >>> from dsd_kernels import pack_mask, unpack_mask
        >>> mask = torch.tensor([[True, False], [False, True]])
        >>> unpack_mask(pack_mask([mask]), [torch.zeros(2, 2)])[0].equal(mask)
        True
    """
    check_lists(packed=packed, like=like)
    check_unpack_mask(packed, like)
    return torch.ops.dsd_kernels.unpack_mask(packed, like) if packed else []


def k_on_device(k: Sequence[int] | Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """k as the ops take it: checked where the host can see it, then copied to the tensors' device without waiting."""
    if isinstance(k, Tensor):
        if k.device.type == "cpu" and k.dtype == torch.int64 and not torch.compiler.is_compiling():
            check_k_values(k.flatten().tolist(), [t.numel() for t in tensors])
    else:
        check_k_values(k, [t.numel() for t in tensors])
        k = torch.tensor(k, dtype=torch.int64, device="cpu")  # whatever the default device is
    return on_device(k, tensors[0].device) if tensors else k


def seed_on_device(seed: int | Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """A rounding seed as the op takes it: a checked int becomes a tensor on the tensors' device, without waiting."""
    if isinstance(seed, Tensor):
        return seed
    check_seed("rounding_seed", seed)
    host = torch.tensor(seed, dtype=torch.int64, device="cpu")
    return on_device(host, tensors[0].device) if tensors else host
