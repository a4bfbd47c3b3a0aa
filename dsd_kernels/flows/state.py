"""State dicts of flows: what must agree before one is loaded."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_kernels.schedule import Schedule

if TYPE_CHECKING:
    from dsd_kernels.flows.base import Flow

Tensors = dict[str, dict[str, Tensor]]
LATER: dict[str, Any] = {"choices": {}, "tensors": {"pruned_values": {}}}  # what state dicts of earlier versions lack


def check_state_dict(flow: "Flow", state_dict: Mapping[str, Any]) -> Tensors:
    """Raise unless the state dict is that of a flow of the same schedule and choices.

    Returns:
        Copies of its tensors, on the devices of the flow's model.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a dict, got {type(state_dict).__name__}")
    expected = flow.state_dict()
    if not set(expected) - set(LATER) <= set(state_dict) <= set(expected):
        raise ValueError(f"state_dict: expected the keys {list(expected)}, got {list(state_dict)}")
    state_dict = {**LATER, **state_dict}
    if state_dict["unit"] != flow.unit:
        raise ValueError(f"state_dict: expected unit {flow.unit!r}, got {state_dict['unit']!r}")
    _check_phases(flow.schedule, Schedule.from_dicts(state_dict["phases"]))
    index, _ = flow.schedule.at(state_dict["position"])
    _check_choices(expected["choices"], state_dict["choices"])
    tensors = _copied(flow, state_dict["tensors"], list(expected["tensors"]))
    _check_restorable(flow, index, tensors)
    return tensors


def _check_phases(ours: Schedule, loaded: Schedule) -> None:
    if len(loaded) != len(ours):
        raise ValueError(f"state_dict: expected {len(ours)} phases, got {len(loaded)}")
    for i, (own, other) in enumerate(zip(ours, loaded, strict=True)):
        if own != other:
            raise ValueError(f"state_dict: phases[{i}]: expected {own!r}, got {other!r}")


def _check_choices(ours: Mapping[str, object], loaded: object) -> None:
    if not isinstance(loaded, Mapping) or not set(loaded) <= set(ours):
        raise ValueError(f"state_dict: choices: expected a dict with the keys {list(ours)}, got {loaded!r}")
    different = [f"{name} {ours[name]!r}, got {loaded[name]!r}" for name in loaded if loaded[name] != ours[name]]
    if different:
        raise ValueError(f"state_dict: expected {'; '.join(different)}")


def _check_restorable(flow: "Flow", index: int, tensors: Tensors) -> None:
    """Raise where pruned weights would come back from 0, though a later phase is to restore them."""
    phases = flow.schedule.phases
    restoring = [i for i in range(index + 1, len(phases)) if phases[i].regrown == "restore"]
    if restoring and phases[index].sparsity > 0 and flow.optimizer.masked_parameters and not tensors["pruned_values"]:
        raise ValueError(
            f"state_dict: pruned_values: expected the values that phases[{restoring[0]}] restores, got none"
        )


def _copied(flow: "Flow", tensors: object, purposes: list[str]) -> Tensors:
    if not isinstance(tensors, Mapping) or set(tensors) != set(purposes):
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
