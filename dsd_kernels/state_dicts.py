"""State dicts: what torch's own saving and loading would lose, put in, and taken out before anything loads.

Masks are bool tensors of the parameter's shape under `state[i]["mask"]`; they are not kept in `optimizer.state`, for
torch casts every tensor there to the parameter's dtype when it loads one. Float32 momentum and master weights of
half-precision parameters are kept there, and taken past that cast. Each group says how many masks it has, so that one
lost on the way is noticed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.hyperparameters import OWN_DEFAULTS, check_group
from dsd_kernels.precision import MASTER_WEIGHT, has_master, momentum_dtype
from dsd_kernels.shards import add_up, is_sharded, like, local, placed_like

_SGD_KEYS = ("params", "lr", "momentum", "dampening", "weight_decay")
_MOMENTUM = "momentum_buffer"


@dataclass
class Extracted:
    """What was taken out of a state dict: (local) masks by parameter, and float32 state by parameter and key."""

    masks: dict[Tensor, Tensor] = field(default_factory=dict)
    wide: dict[Tensor, dict[str, Tensor]] = field(default_factory=dict)


def add_masks(
    state_dict: dict[str, Any], param_groups: Sequence[dict[str, Any]], masks: Mapping[Tensor, Tensor]
) -> None:
    """Put bool masks into a state dict that torch has just made; the optimizer's own state is left alone."""
    state = state_dict["state"] = dict(state_dict["state"])
    for packed, group in zip(state_dict["param_groups"], param_groups, strict=True):
        packed["n_masked"] = 0
        for index, p in zip(packed["params"], group["params"], strict=True):
            if "mask" in state.get(index, {}):
                state[index] = {key: value for key, value in state[index].items() if key != "mask"}
            mask = masks.get(p)
            if mask is None and group["full_state_dict"]:
                mask = like(p, torch.ones(local(p).shape, dtype=torch.bool, device=p.device))
            if mask is not None:
                state[index] = {**state.get(index, {}), "mask": mask}
                packed["n_masked"] += 1
    if masks:
        # torch.distributed.checkpoint expects an entry for every parameter as soon as there is one
        for index in (index for packed in state_dict["param_groups"] for index in packed["params"]):
            state.setdefault(index, {})


def extract(
    state_dict: Mapping[str, Any],
    param_groups: Sequence[dict[str, Any]],
    names: Mapping[Tensor, str],
) -> tuple[dict[str, Any], Extracted]:
    """A state dict as torch.optim.SGD can load it, and what was taken out; raises before anything has changed.

    Raises:
        ValueError: keys that SGD needs are missing; state or a mask does not have its parameter's shape; a mask is
            neither bool nor made of zeros and ones; a mask was lost. Groups that do not match are left to torch.
    """
    _check_keys(state_dict)
    for group in state_dict["param_groups"]:
        check_group(group)
    if [len(g["params"]) for g in state_dict["param_groups"]] != [len(g["params"]) for g in param_groups]:
        return dict(state_dict), Extracted()
    state, extracted, groups = dict(state_dict["state"]), Extracted(), []
    for i, (saved, own) in enumerate(zip(state_dict["param_groups"], param_groups, strict=True)):
        kept_options = {name: own.get(name, default) for name, default in OWN_DEFAULTS.items()}
        options = {**kept_options, **saved}  # torch.optim.SGD's groups say nothing of ours
        _check_names(i, saved, own)
        for index, p in zip(saved["params"], own["params"], strict=True):
            if not isinstance(state.get(index, {}), Mapping):
                raise ValueError(f"state_dict: state of {names[p]}: expected a dict, got {state[index]!r}")
        _check_mask_count(i, saved, state)
        for index, p in zip(saved["params"], own["params"], strict=True):
            if index in state:
                state[index] = _extract_entry(dict(state[index]), p, names[p], options, extracted)
                if not state[index]:
                    del state[index]
        groups.append({key: value for key, value in options.items() if key != "n_masked"})
    return {**state_dict, "state": state, "param_groups": groups}, extracted


def _extract_entry(
    entry: dict[str, Any], p: Tensor, name: str, options: Mapping[str, Any], extracted: Extracted
) -> dict[str, Any]:
    """What is left of a parameter's entry for torch to load."""
    wanted = {_MOMENTUM: momentum_dtype(options, p) != p.dtype, MASTER_WEIGHT: has_master(options, p)}
    for key, is_wide in wanted.items():
        _check_state(f"{key} of {name}", entry.get(key), p)
        if is_wide and entry.get(key) is not None:
            # one that went through torch.optim.SGD comes back in the parameter's dtype
            wide = placed_like(p, entry.pop(key)).to(p.device, torch.float32)
            extracted.wide.setdefault(p, {})[key] = like(p, wide)
        elif is_sharded(p) and entry.get(key) is not None:
            entry[key] = like(p, placed_like(p, entry[key]))
    if "mask" in entry:
        mask = _as_bool(f"mask of {name}", entry.pop("mask"), p)
        if not (options["full_state_dict"] and _keeps_all(p, mask)):
            extracted.masks[p] = mask
    return entry


def _check_keys(state_dict: Mapping[str, Any]) -> None:
    for key, kind in (("state", Mapping), ("param_groups", Sequence)):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise ValueError(f"state_dict: expected an optimizer's state dict with the key {key!r}, which is missing")
        if not isinstance(state_dict[key], kind):
            raise ValueError(f"state_dict: {key}: expected a {kind.__name__.lower()}, got {state_dict[key]!r}")
    for i, group in enumerate(state_dict["param_groups"]):
        for key in _SGD_KEYS:
            if key not in group:
                raise ValueError(f"state_dict: expected a group of SGD, but param_groups[{i}] has no {key!r}")


def _check_names(i: int, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    ours, theirs = own.get("param_names"), saved.get("param_names")
    if ours and theirs and ours != theirs and sorted(ours) == sorted(theirs):
        raise ValueError(f"state_dict: param_groups[{i}]: expected the parameters {ours} in this order, got {theirs}")


def _check_mask_count(i: int, group: Mapping[str, Any], state: Mapping[Any, Any]) -> None:
    n_masks = sum("mask" in state.get(index, ()) for index in group["params"])
    if group.get("n_masked", n_masks) != n_masks:
        raise ValueError(
            f"state_dict: param_groups[{i}]: expected masks of {group['n_masked']} parameters, got {n_masks}. "
            "torch.distributed.checkpoint loads only what the new optimizer's own state dict has: "
            "make both optimizers with MaskedSGD(..., full_state_dict=True)"
        )


def _check_state(name: str, tensor: object, param: Tensor) -> None:
    if tensor is None:
        return
    if not isinstance(tensor, Tensor) or tensor.is_complex() != param.is_complex():
        got = tensor.dtype if isinstance(tensor, Tensor) else repr(tensor)
        raise ValueError(f"state_dict: {name}: expected a tensor like its parameter, of {param.dtype}, got {got}")
    _check_shape(name, tensor, param)


def _check_shape(name: str, tensor: Tensor, param: Tensor) -> None:
    if tensor.shape != param.shape:
        raise ValueError(f"state_dict: {name}: expected shape {tuple(param.shape)}, got {tuple(tensor.shape)}")


def _as_bool(name: str, mask: object, param: Tensor) -> Tensor:
    """The local mask; one that went through torch.optim.SGD comes back in the parameter's dtype, as zeros and ones."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"state_dict: {name}: expected a bool tensor, got {type(mask).__name__}")
    _check_shape(name, mask, param)
    if mask.layout != torch.strided:
        raise ValueError(f"state_dict: {name}: expected a strided tensor, got one in layout {mask.layout}")
    own = placed_like(param, mask)
    if mask.dtype != torch.bool and not bool(((own == 0) | (own == 1)).all()):
        raise ValueError(f"state_dict: {name}: expected a bool tensor, got {mask.dtype} with values other than 0 and 1")
    return own.to(dtype=torch.bool, device=param.device)


def _keeps_all(param: Tensor, mask: Tensor) -> bool:
    """Whether a mask is all True, on all the ranks of a DTensor."""
    return add_up([param], [[int((~mask).sum())]]) == [[0]]
