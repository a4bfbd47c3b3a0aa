"""One check per op, raised before anything changes. Called by the fakes, the public calls and the optimizer.

Plain `raise` throughout: `torch._check` with a formatting lambda breaks graphs.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from dsd_kernels.ops.layout import is_dense, packed_bytes

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)

# for a parameter of one dtype, the dtypes that its companions may have
_Companions = dict[torch.dtype, tuple[torch.dtype, ...]]
SAME_DTYPE: _Companions = {dtype: (dtype,) for dtype in FLOAT_DTYPES}
MOMENTUM_DTYPES: _Companions = SAME_DTYPE | {dtype: (dtype, torch.float32) for dtype in HALF_DTYPES}
GRAD_DTYPES: _Companions = SAME_DTYPE | dict.fromkeys((torch.float32, *HALF_DTYPES), (torch.float32, *HALF_DTYPES))
COPY_DTYPES: _Companions = {torch.float32: HALF_DTYPES}


def check_masked_sgd(
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
    for name, number in (("lr", lr), ("momentum", momentum), ("dampening", dampening), ("weight_decay", weight_decay)):
        check_number(name, number)
    for name, flag in (("nesterov", nesterov), ("maximize", maximize), ("mask_momentum", mask_momentum)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected True or False, got {flag!r}")
    _check_weights("params", params)
    _check_like("grads", grads, params, GRAD_DTYPES)
    if momentum_buffers:
        _check_like("momentum_buffers", momentum_buffers, params, MOMENTUM_DTYPES)
    if copies:
        _check_like("copies", copies, params, COPY_DTYPES)
    _check_masks(masks, params)
    if momentum != 0 and params and not momentum_buffers:
        raise ValueError(f"momentum_buffers: expected one per parameter for momentum={momentum}, got none")
    if momentum == 0 and momentum_buffers:
        raise ValueError(f"momentum_buffers: expected none for momentum=0, got {len(momentum_buffers)}")
    for name, scalar in (("lr_tensor", lr_tensor), ("grad_scale", grad_scale), ("found_inf", found_inf)):
        _check_scalar(name, scalar, params, (torch.float32, torch.float64))
    _check_rounding_seed(rounding_seed, params)


def check_kth_magnitude(tensors: Sequence[Tensor], k: Tensor) -> None:
    _check_weights("tensors", tensors)
    _check_k(k, tensors)


def check_prune(
    params: Sequence[Tensor], momentum_buffers: Sequence[Tensor], masks: Sequence[Tensor], k: Tensor
) -> None:
    _check_weights("params", params)
    if momentum_buffers:
        _check_like("momentum_buffers", momentum_buffers, params, SAME_DTYPE)
    _check_length("masks", masks, params)
    _check_masks(masks, params)
    _check_k(k, params)


def check_global_counts(tensors: Sequence[Tensor], k: Tensor) -> None:
    if not tensors:
        raise ValueError("tensors: expected one or more, got none")
    _check_weights("tensors", tensors)
    _check_tensor("k", k)
    if k.dtype != torch.int64 or k.numel() != 1:
        raise ValueError(f"k: expected one int64 element, got shape {tuple(k.shape)} of {k.dtype}")
    if k.device != tensors[0].device:
        raise ValueError(f"k: expected device {tensors[0].device} as the tensors, got {k.device}")


def check_magnitude_histogram(tensors: Sequence[Tensor], prefixes: Tensor, shift: int) -> None:
    _check_weights("tensors", tensors)
    _check_k(prefixes, tensors, name="prefixes")
    if tensors and not 0 <= shift < 8 * tensors[0].itemsize - 1:
        raise ValueError(f"shift: expected a bit of the magnitude, below {8 * tensors[0].itemsize - 1}, got {shift}")


def check_pack_mask(masks: Sequence[Tensor]) -> None:
    for i, mask in enumerate(masks):
        _check_tensor(f"masks[{i}]", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"masks[{i}]: expected dtype torch.bool, got {mask.dtype}")
        _check_same_device("masks", i, masks)
        _check_dense(f"masks[{i}]", mask)


def check_unpack_mask(packed: Sequence[Tensor], like: Sequence[Tensor]) -> None:
    _check_length("packed", packed, like)
    for i, tensor in enumerate(like):
        _check_tensor(f"like[{i}]", tensor)
        _check_same_device("like", i, like)
        _check_dense(f"like[{i}]", tensor)
    _check_masks(packed, like, name="packed")


def check_k_values(k: Sequence[int], sizes: Sequence[int]) -> None:
    """Host values of k, where the caller has them: integers in [0, n], one per tensor."""
    if not isinstance(k, Sequence) or isinstance(k, str):
        raise TypeError(f"k: expected a list of ints or an int64 tensor, got {k!r}")
    if len(k) != len(sizes):
        raise ValueError(f"k: expected {len(sizes)} values, one per tensor, got {len(k)}")
    for i, (value, n) in enumerate(zip(k, sizes, strict=True)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"k[{i}]: expected an int, got {value!r}")
        if not 0 <= value <= n:
            raise ValueError(f"k[{i}]: expected an integer in [0, {n}], got {value}")


def check_seed(name: str, seed: object) -> None:
    """Raise unless the host's value is an integer that fits into an int64."""
    if isinstance(seed, torch.SymInt):  # an int argument under torch.compile
        return
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"{name}: expected an int or an int64 tensor, got {seed!r}")
    if not -(2**63) <= int(seed) < 2**63:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {seed!r}")


def check_lists(**lists: object) -> None:
    """A tensor in place of a list of tensors is the likeliest slip, and iterates into nonsense."""
    for name, tensors in lists.items():
        if not isinstance(tensors, Sequence):
            raise TypeError(f"{name}: expected a list of tensors, got {type(tensors).__name__}; write [tensor] for one")


def check_number(name: str, value: object) -> None:
    """Raise unless the value is a finite number."""
    if isinstance(value, torch.SymFloat | torch.SymInt):  # a float argument under torch.compile
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    # torch.compile cannot trace math.isfinite of a symbolic float
    if not -math.inf < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a finite number, got {value!r}")


def _check_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")


def _check_dense(name: str, tensor: Tensor) -> None:
    if not is_dense(tensor):
        raise ValueError(
            f"{name}: expected a dense tensor without gaps or overlap, "
            f"got shape {tuple(tensor.shape)} with strides {tensor.stride()}"
        )


def _check_weights(name: str, tensors: Sequence[Tensor]) -> None:
    for i, tensor in enumerate(tensors):
        _check_tensor(f"{name}[{i}]", tensor)
        if tensor.dtype not in FLOAT_DTYPES:
            raise TypeError(f"{name}[{i}]: expected dtype {_or(FLOAT_DTYPES)}, got {tensor.dtype}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name}[{i}]: expected a strided tensor, got layout {tensor.layout}")
        _check_dense(f"{name}[{i}]", tensor)
        if tensor.dtype != tensors[0].dtype:
            raise TypeError(f"{name}[{i}]: expected dtype {tensors[0].dtype} as {name}[0], got {tensor.dtype}")
        _check_same_device(name, i, tensors)


def _check_same_device(name: str, i: int, tensors: Sequence[Tensor]) -> None:
    """One launch serves all tensors of a call."""
    if tensors[i].device != tensors[0].device:
        raise ValueError(f"{name}[{i}]: expected device {tensors[0].device} as {name}[0], got {tensors[i].device}")


def _check_length(name: str, tensors: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    if len(tensors) != len(reference):
        raise ValueError(f"{name}: expected {len(reference)} tensors, one per parameter, got {len(tensors)}")


def _check_like(name: str, tensors: Sequence[Tensor], params: Sequence[Tensor], dtypes: _Companions) -> None:
    _check_length(name, tensors, params)
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        _check_tensor(f"{name}[{i}]", tensor)
        if tensor.layout != torch.strided:
            raise TypeError(f"{name}[{i}]: expected a strided tensor, got layout {tensor.layout}")
        if tensor.shape != param.shape:
            raise ValueError(f"{name}[{i}]: expected shape {tuple(param.shape)}, got {tuple(tensor.shape)}")
        if tensor.dtype not in dtypes.get(param.dtype, ()):
            expected = f"dtype {_or(dtypes[param.dtype])}" if param.dtype in dtypes else "none"
            raise TypeError(f"{name}[{i}]: expected {expected} for a parameter of {param.dtype}, got {tensor.dtype}")
        if tensor.dtype != tensors[0].dtype:
            raise TypeError(f"{name}[{i}]: expected dtype {tensors[0].dtype} as {name}[0], got {tensor.dtype}")
        if tensor.device != param.device:
            raise ValueError(f"{name}[{i}]: expected device {param.device} as its parameter, got {tensor.device}")
        if tensor.stride() != param.stride():
            raise ValueError(f"{name}[{i}]: expected strides {param.stride()} as its parameter, got {tensor.stride()}")


def _check_masks(masks: Sequence[Tensor], params: Sequence[Tensor], name: str = "masks") -> None:
    if masks:
        _check_length(name, masks, params)
    for i, (mask, param) in enumerate(zip(masks, params, strict=bool(masks))):
        _check_tensor(f"{name}[{i}]", mask)
        if mask.dtype != torch.uint8:
            raise TypeError(f"{name}[{i}]: expected packed bits of dtype torch.uint8, got {mask.dtype}")
        if mask.shape != (packed_bytes(param.numel()),) or not mask.is_contiguous():
            raise ValueError(
                f"{name}[{i}]: expected {packed_bytes(param.numel())} contiguous bytes for {param.numel()} weights, "
                f"got shape {tuple(mask.shape)} with strides {mask.stride()}"
            )
        if mask.device != param.device:
            raise ValueError(f"{name}[{i}]: expected device {param.device} as its parameter, got {mask.device}")


def _check_k(k: Tensor, tensors: Sequence[Tensor], name: str = "k") -> None:
    _check_tensor(name, k)
    if k.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype torch.int64, got {k.dtype}")
    if k.shape != (len(tensors),) or not k.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor of shape ({len(tensors)},), got shape {tuple(k.shape)}")
    if tensors and k.device != tensors[0].device:
        raise ValueError(f"{name}: expected device {tensors[0].device} as the tensors, got {k.device}")


def _check_scalar(name: str, scalar: Tensor | None, params: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> None:
    if scalar is None:
        return
    _check_tensor(name, scalar)
    if scalar.numel() != 1 or scalar.dtype not in dtypes:
        raise ValueError(
            f"{name}: expected one {_or(dtypes)} element, got shape {tuple(scalar.shape)} of {scalar.dtype}"
        )
    if params and scalar.device != params[0].device:
        raise ValueError(f"{name}: expected device {params[0].device} as the parameters, got {scalar.device}")


def _check_rounding_seed(seed: Tensor | None, params: Sequence[Tensor]) -> None:
    _check_scalar("rounding_seed", seed, params, (torch.int64,))
    if seed is not None and params and params[0].dtype not in HALF_DTYPES:
        raise TypeError(f"rounding_seed: expected None for {params[0].dtype}, only {_or(HALF_DTYPES)} is rounded by it")


def _or(dtypes: Sequence[torch.dtype]) -> str:
    *others, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(others)} or {last}" if others else last
