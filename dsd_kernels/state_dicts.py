"""Masks in state dicts: bool tensors of the parameter's shape under `state[i]["mask"]`, checked before anything loads.

They are not kept in `optimizer.state`: torch casts every tensor there to the parameter's dtype when it loads one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.hyperparameters import check_group

_SGD_KEYS = ("params", "lr", "momentum", "dampening", "weight_decay")


def add_masks(
    state_dict: dict[str, Any], param_groups: Sequence[dict[str, Any]], masks: Mapping[Tensor, Tensor]
) -> None:
    """Put bool masks into a state dict that torch has just made; the optimizer's own state is left alone."""
    state = state_dict["state"] = dict(state_dict["state"])
    for packed, group in zip(state_dict["param_groups"], param_groups, strict=True):
        for index, param in zip(packed["params"], group["params"], strict=True):
            if param in masks:
                state[index] = {**state.get(index, {}), "mask": masks[param]}


def split_masks(
    state_dict: Mapping[str, Any], param_groups: Sequence[dict[str, Any]], names: Mapping[Tensor, str]
) -> tuple[dict[str, Any], dict[Tensor, Tensor]]:
    """A state dict without its masks, and the masks by parameter; raises before anything has changed.

    Raises:
        ValueError: keys that SGD needs are missing; momentum or a mask does not have its parameter's shape; a mask is
            neither bool nor made of zeros and ones. Groups that do not match are left to torch's own texts.
    """
    _check_keys(state_dict)
    for group in state_dict["param_groups"]:
        check_group(group)
    params = [p for group in param_groups for p in group["params"]]
    indices = [i for group in state_dict["param_groups"] for i in group["params"]]
    if [len(g["params"]) for g in state_dict["param_groups"]] != [len(g["params"]) for g in param_groups]:
        return dict(state_dict), {}
    state = dict(state_dict["state"])
    masks = {}
    for index, param in zip(indices, params, strict=True):
        entry = dict(state.get(index, {}))
        _check_shape(f"momentum_buffer of {names[param]}", entry.get("momentum_buffer"), param)
        if "mask" in entry:
            masks[param] = _as_bool(f"mask of {names[param]}", entry.pop("mask"), param)
            state[index] = entry
    for index in [index for index in set(indices) if index in state and not state[index]]:
        del state[index]
    return {**state_dict, "state": state}, masks


def _check_keys(state_dict: Mapping[str, Any]) -> None:
    for key in ("state", "param_groups"):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise ValueError(f"state_dict: expected an optimizer's state dict with the key {key!r}, which is missing")
    for i, group in enumerate(state_dict["param_groups"]):
        for key in _SGD_KEYS:
            if key not in group:
                raise ValueError(f"state_dict: expected a group of SGD, but param_groups[{i}] has no {key!r}")


def _check_shape(name: str, tensor: object, param: Tensor) -> None:
    if isinstance(tensor, Tensor) and tensor.shape != param.shape:
        raise ValueError(f"state_dict: {name}: expected shape {tuple(param.shape)}, got {tuple(tensor.shape)}")


def _as_bool(name: str, mask: object, param: Tensor) -> Tensor:
    """A mask that went through torch.optim.SGD comes back in the parameter's dtype, as zeros and ones."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"state_dict: {name}: expected a bool tensor, got {type(mask).__name__}")
    _check_shape(name, mask, param)
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"state_dict: {name}: expected a bool tensor, got {mask.dtype} with values other than 0 and 1")
    return mask.to(dtype=torch.bool, device=param.device)
