"""One step of a parameter group: its parameters gathered into lists, one op call per device, dtype and kind.

Gathering changes nothing, so that all groups can be gathered and checked before any is stepped.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import _device_dtype_check_for_fused
from torch.optim.sgd import sgd

from dsd_kernels.hyperparameters import check_options, learning_rate, number
from dsd_kernels.ops.checks import HALF_DTYPES
from dsd_kernels.ops.layout import restride
from dsd_kernels.packed_masks import PackedMasks
from dsd_kernels.parameters import dense, to_device, why_loop, why_loop_group
from dsd_kernels.precision import (
    HALF_OPTIONS,
    MASTER_WEIGHT,
    has_master,
    is_wide,
    master_of,
    momentum_dtype,
    seed_for,
)
from dsd_kernels.shards import is_sharded, like, local, local_state, placed_like, why_no_shard

Looped = list[tuple[Tensor, str]]  # parameters for torch's own loop, each with the reason


class Kept(NamedTuple):
    """What an optimizer keeps for its parameters."""

    state: MutableMapping[Tensor, dict[str, Any]]
    masks: PackedMasks


class Scaling(NamedTuple):
    """GradScaler's scale and overflow flag, where it leaves both to the step."""

    grad_scale: Tensor | None
    found_inf: Tensor | None

    def skips(self) -> bool:
        """Whether there was an overflow; read by the host, so asked only where the kernel cannot decide."""
        return self.found_inf is not None and self.found_inf.item() != 0


class _Kind(NamedTuple):
    """What the parameters of one op call have in common."""

    device: torch.device
    dtype: torch.dtype
    grad_dtype: torch.dtype
    masked: bool
    first_step: bool


@dataclass
class StepCall:
    """The lists of one op call, and what its run leaves behind."""

    group_index: int
    kind: _Kind
    ordinal: int  # among the calls of its group
    owners: list[Tensor] = field(default_factory=list)
    # the owners (of DTensors the local ones, as in all lists below), dense copies of those with gaps, or masters
    weights: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    momentum_buffers: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    copies: list[Tensor] = field(default_factory=list)  # the owners, where `weights` are their masters
    sharded: list[Tensor] = field(default_factory=list)  # the owners that are DTensors
    new_state: list[tuple[Tensor, str, Tensor]] = field(default_factory=list)  # (parameter, key, value)
    written_back: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (parameter with gaps, its dense copy)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def lists(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        return self.weights, self.grads, self.momentum_buffers, self.masks, self.copies

    def set_options(self, group: dict[str, Any], scaling: Scaling) -> None:
        """The numbers of this step, which may differ from those of the step before."""
        lr, device = learning_rate(group), self.kind.device
        self.options = {
            "lr": 0.0 if isinstance(lr, Tensor) else number("lr", lr),
            "momentum": number("momentum", group["momentum"]),
            # torch does not dampen a first step; over buffers of -0.0 nothing else sets it apart
            "dampening": 0.0 if self.kind.first_step else number("dampening", group["dampening"]),
            "weight_decay": number("weight_decay", group["weight_decay"]),
            "nesterov": bool(group["nesterov"]),
            "maximize": bool(group["maximize"]),
            "mask_momentum": group["mask_momentum"] == "zero",
            "lr_tensor": to_device(lr, device) if isinstance(lr, Tensor) else None,
            "grad_scale": to_device(scaling.grad_scale, device),
            "found_inf": to_device(scaling.found_inf, device),
        }
        if group["stochastic_rounding"] and self.kind.dtype in HALF_DTYPES:
            self.options["rounding_seed"] = seed_for(group, device, ordinal=256 * self.group_index + self.ordinal)

    def run(self, kept: Kept) -> None:
        for p, key, value in self.new_state:
            kept.state[p][key] = like(p, value)
        lists, self.grads = self.lists, []  # to keep a gradient would keep its memory
        torch.ops.dsd_kernels.masked_sgd_(*lists, **self.options)
        for p, copy in self.written_back:
            p.copy_(copy)
        torch.autograd.graph.increment_version([*self.weights, *self.momentum_buffers, *self.copies, *self.sharded])


def gather(
    index: int, group: dict[str, Any], with_grad: list[Tensor], kept: Kept, scaling: Scaling, reason: str
) -> tuple[Looped, list[StepCall]]:
    """Those of a group's parameters with gradients that torch's loop must take, and why; the op calls for the others.

    `reason` is why the loop must take the whole group, or empty.
    """
    check_options(group)  # anybody may have written into it
    reason = reason or why_loop_group(group)
    has_momentum, wide = group["momentum"] != 0, is_wide(group)
    looped: Looped = []
    calls: dict[_Kind, StepCall] = {}
    for p in with_grad:
        entry = local_state(p, kept.state.get(p, {}))
        _check_entry(entry)
        buffer = entry.get("momentum_buffer") if has_momentum else None
        careful = wide and p.dtype in HALF_DTYPES
        why = reason or why_no_shard(p)
        here, grad = (p, p.grad) if why else (local(p), placed_like(p, p.grad))  # type: ignore[arg-type]
        why = why or why_loop(here, grad, buffer, careful)  # type: ignore[arg-type]
        if why:
            if is_sharded(p) and p in kept.masks:
                raise RuntimeError(f"masks of DTensors do not support {why}")
            looped.append((p, why))
            continue
        first_step = buffer is None and has_momentum and group["dampening"] != 0
        if first_step and scaling.skips():
            continue
        own = dense(here)
        weight = master_of(here, own, entry) if careful and has_master(group, p) else own
        bits = kept.masks.bits(p, weight)
        kind = _Kind(here.device, p.dtype, grad.dtype, bits is not None, first_step)  # type: ignore[union-attr]
        call = calls.get(kind)
        if call is None:
            call = calls[kind] = StepCall(index, kind, ordinal=len(calls))
            call.set_options(group, scaling)
        _append(call, p, here, grad, own, weight, entry)  # type: ignore[arg-type]
        if bits is not None:
            call.masks.append(bits)
        if group["full_state_dict"] and "mask" not in entry:
            # the key alone: torch.distributed.checkpoint loads what it finds named in the live state
            call.new_state.append((p, "mask", torch.empty(0, dtype=torch.bool, device=p.device)))
        if has_momentum:
            _append_momentum(call, p, weight, buffer, momentum_dtype(group, p) if careful else p.dtype)
    return looped, list(calls.values())


def _check_entry(entry: dict[str, Any]) -> None:
    if "mask" in entry and entry["mask"].numel() > 0:
        raise ValueError(
            "state: found a mask, which was loaded past load_state_dict() and would not be kept; give the state dict "
            "to MaskedSGD.load_state_dict()"
        )


def _append(
    call: StepCall, p: Tensor, here: Tensor, grad: Tensor, own: Tensor, weight: Tensor, entry: dict[str, Any]
) -> None:
    """Add a parameter to the lists of its call, everything laid out in memory as its weight is."""
    if grad.shape != here.shape:
        raise RuntimeError(f"gradient: expected shape {tuple(here.shape)} as its parameter, got {tuple(grad.shape)}")
    call.owners.append(p)
    call.weights.append(weight)
    call.grads.append(restride(grad, weight))
    if is_sharded(p):
        call.sharded.append(p)
    if own is not here:
        call.written_back.append((here, own))
    if weight is not own:
        call.copies.append(own)
        if entry.get(MASTER_WEIGHT) is not weight:
            call.new_state.append((p, MASTER_WEIGHT, weight))


def _append_momentum(call: StepCall, p: Tensor, weight: Tensor, buffer: Tensor | None, dtype: torch.dtype) -> None:
    kept = buffer
    if buffer is None:
        # -0.0 is neutral: momentum * -0.0 + g is g to the bit, even where g is -0.0
        buffer = torch.full_like(weight, -0.0, dtype=dtype, requires_grad=False)
    # `model.to(memory_format=...)` changes only the weights; the option of float32 momentum may be new to its group
    buffer = restride(buffer, weight)
    if buffer.dtype != dtype:
        buffer = buffer.to(dtype)
    if buffer is not kept:
        call.new_state.append((p, "momentum_buffer", buffer))
    call.momentum_buffers.append(buffer)


def check_loop(group: dict[str, Any], looped: Looped, scaling: Scaling) -> None:
    """Raise for what torch's loop cannot do for these parameters.

    Raises:
        RuntimeError: fused, or an option for half-precision weights, with parameters that only the loop takes; and why.
    """
    fused = group["fused"] or scaling.found_inf is not None
    for p, why in looped:
        asked = [name for name in HALF_OPTIONS if group[name] and p.dtype in HALF_DTYPES]
        if fused:
            _device_dtype_check_for_fused(p)
            asked.insert(0, "fused=True")
        if asked:
            raise RuntimeError(f"{' and '.join(asked)} does not support {why}")


def step_loop(group: dict[str, Any], params: list[Tensor], kept: Kept) -> None:
    """torch's own per-parameter loop, then the mask: for what one fused call cannot do."""
    state = kept.state
    buffers = [state[p].get("momentum_buffer") for p in params] if group["momentum"] != 0 else []
    sgd(
        params,
        [p.grad for p in params],  # type: ignore[misc]
        buffers,
        has_sparse_grad=any(p.grad is not None and p.grad.is_sparse for p in params),
        foreach=False,
        fused=False,
        lr=learning_rate(group),  # type: ignore[arg-type]
        **{key: group[key] for key in ("weight_decay", "momentum", "dampening", "nesterov", "maximize")},
    )
    for p, buffer in zip(params, buffers, strict=bool(buffers)):
        state[p]["momentum_buffer"] = buffer
    for p in params:
        if p in kept.masks:
            zero_pruned(group, p, kept.masks.unpacked(p), state.get(p, {}))


def zero_pruned(group: dict[str, Any], p: Tensor, mask: Tensor, entry: dict[str, Any]) -> None:
    """Select weights, masters and momentum by a mask, outside the fused op; by a local one of a DTensor."""
    entry = local_state(p, entry)
    local(p).masked_fill_(~mask, 0.0)
    if has_master(group, p) and MASTER_WEIGHT in entry:
        entry[MASTER_WEIGHT].masked_fill_(~mask, 0.0)
    buffer = entry.get("momentum_buffer")
    if buffer is None or group["mask_momentum"] != "zero":
        return
    if group["differentiable"] or buffer.layout != torch.strided:  # a backward pass may need the values before
        entry["momentum_buffer"] = buffer.to_dense().masked_fill(~mask, 0.0)
    else:
        buffer.masked_fill_(~mask, 0.0)
