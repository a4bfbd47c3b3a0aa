"""What one step found, kept for the next: most steps differ from the one before in gradients and numbers alone."""

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.ops.checks import check_masked_sgd
from dsd_kernels.ops.layout import restride
from dsd_kernels.parameters import needs_loop
from dsd_kernels.step import Kept, Scaling, StepCall, check_loop, gather

_DECIDING = ("master_weights", "momentum_dtype", "stochastic_rounding", "full_state_dict")
_has_no_memory = Tensor._is_zerotensor
_Groups = Sequence[dict[str, Any]]


class StepPlan:
    """All groups, gathered and checked; good for as long as nothing has changed that gathering looks at.

    Looking whether that is so costs a fraction of gathering: it compares whole lists, by identity or address.
    """

    def __init__(self, groups: _Groups, with_grad: Sequence[list[Tensor]], kept: Kept, scaling: Scaling) -> None:
        gathered = [
            gather(index, group, params, kept, scaling)
            for index, (group, params) in enumerate(zip(groups, with_grad, strict=True))
        ]
        self.looped = [looped for looped, _ in gathered]
        self.calls = [call for _, calls in gathered for call in calls]
        for group, looped in zip(groups, self.looped, strict=True):
            if looped:
                check_loop(group, looped, scaling)
        if torch.compiler.is_compiling():  # the op's fake checks
            return
        for call in self.calls:
            check_masked_sgd(*call.lists, **call.options)
        self._conditions = _conditions(groups, kept)
        self._params = [p for group in groups for p in group["params"]]
        owners = [p for call in self.calls for p in call.owners]
        self._idle = [p for p in self._params if p.grad is None]
        # what makes state or copies, or left a parameter out, is gathered anew next time
        self._lasts = len(owners) + len(self._idle) == len(self._params) and not any(
            call.new_state or call.written_back for call in self.calls
        )
        self._state = list(kept.state.values())
        self._snapshots = [_Snapshot(call, kept) for call in self.calls] if self._lasts else []

    def renew(self, groups: _Groups, kept: Kept, scaling: Scaling) -> bool:
        """Take this step's gradients and numbers; False where the plan does not hold any more."""
        if not (
            self._lasts
            and self._conditions == _conditions(groups, kept)
            and _same(self._params, [p for group in groups for p in group["params"]])
            and _same(self._state, list(kept.state.values()))
            and all(p.grad is None for p in self._idle)
            and all(snapshot.holds(kept) for snapshot in self._snapshots)
        ):
            return False
        for call in self.calls:
            call.set_options(groups[call.group_index], scaling)
        return True


class _Snapshot:
    """One call's tensors as they were when it was gathered."""

    def __init__(self, call: StepCall, kept: Kept) -> None:
        self._call = call
        self._entries = [kept.state.get(p, {}) for p in call.owners]
        self._grads_like = _forms(call.grads)
        self._strides = list(map(Tensor.stride, call.weights))
        self._addresses = self._current_addresses()

    def holds(self, kept: Kept) -> bool:
        """Whether only the gradients are new, and of the same kind; they are the call's then."""
        call = self._call
        grads: list[Any] = [p.grad for p in call.owners]
        if set(map(type, grads)) != {Tensor} or _forms(grads) != self._grads_like or any(map(_has_no_memory, grads)):
            return False
        if self._current_addresses() != self._addresses or list(map(Tensor.stride, call.weights)) != self._strides:
            return False
        if not self._same_state("momentum_buffer", call.momentum_buffers):
            return False
        if call.copies and not self._same_state("master_weight", call.weights):
            return False
        if call.copies and not kept.masters.untouched(call.owners):
            return False
        call.grads = grads
        if list(map(Tensor.stride, grads)) != self._strides:
            call.grads = [restride(grad, weight) for grad, weight in zip(grads, call.weights, strict=True)]
        return True

    def _same_state(self, key: str, tensors: list[Tensor]) -> bool:
        return not tensors or _same(tensors, [entry.get(key) for entry in self._entries])

    def _current_addresses(self) -> list[int]:
        call = self._call
        return list(map(Tensor.data_ptr, chain(call.weights, call.momentum_buffers, call.copies)))


def _conditions(groups: _Groups, kept: Kept) -> list[object]:
    """All but tensors that gathering looks at."""
    conditions: list[object] = [kept.masks.version]
    for group in groups:
        conditions += [len(group["params"]), group["momentum"] != 0, needs_loop(group)]
        conditions += [group[name] for name in _DECIDING]
    return conditions


def _forms(grads: Iterable[Tensor]) -> set[object]:
    return set(map(attrgetter("dtype", "layout"), grads))


def _same(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(map(is_, ours, theirs))
