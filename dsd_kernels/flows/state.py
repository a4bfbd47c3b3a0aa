"""State dicts of flows: what must agree before one is loaded."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_kernels.schedule import Schedule

if TYPE_CHECKING:
    from dsd_kernels.flows.base import Flow

Tensors = dict[str, dict[str, Tensor]]


def check_state_dict(flow: "Flow", state_dict: Mapping[str, Any]) -> Tensors:
    """Raise unless the state dict is that of a flow with the same schedule.

    Returns:
        Copies of its tensors, on the devices of the flow's model.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a dict, got {type(state_dict).__name__}")
    expected = flow.state_dict()
    state_dict = {"tensors": {}, **state_dict}  # earlier versions kept none
    if set(state_dict) != set(expected):
        raise ValueError(f"state_dict: expected the keys {list(expected)}, got {list(state_dict)}")
    if state_dict["unit"] != flow.unit:
        raise ValueError(f"state_dict: expected unit {flow.unit!r}, got {state_dict['unit']!r}")
    _check_phases(flow.schedule, Schedule.from_dicts(state_dict["phases"]))
    flow.schedule.at(state_dict["position"])
    return _copied(flow, state_dict["tensors"], list(expected["tensors"]))


def _check_phases(ours: Schedule, loaded: Schedule) -> None:
    if len(loaded) != len(ours):
        raise ValueError(f"state_dict: expected {len(ours)} phases, got {len(loaded)}")
    for i, (own, other) in enumerate(zip(ours, loaded, strict=True)):
        if own != other:
            raise ValueError(f"state_dict: phases[{i}]: expected {own!r}, got {other!r}")


def _copied(flow: "Flow", tensors: object, purposes: list[str]) -> Tensors:
    if not isinstance(tensors, Mapping) or not set(tensors) <= set(purposes):
        raise ValueError(f"state_dict: tensors: expected a dict with the keys {purposes}, got {tensors!r}")
    model = {**dict(flow.model.named_parameters()), **dict(flow.model.named_buffers())}
    copies: Tensors = {}
    for purpose, by_name in tensors.items():
        if not isinstance(by_name, Mapping):
            raise ValueError(f"state_dict: {purpose}: expected a dict of tensors by name, got {by_name!r}")
        copies[purpose] = {}
        for name, tensor in by_name.items():
            if name not in model or not isinstance(tensor, Tensor) or tensor.shape != model[name].shape:
                raise ValueError(f"state_dict: {purpose}: expected tensors of the model's shapes, {name!r} is not one")
            copies[purpose][name] = torch.empty_like(model[name], dtype=tensor.dtype, requires_grad=False).copy_(tensor)
    return copies
