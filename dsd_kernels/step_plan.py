"""What one step found, kept for the next: most steps differ from the one before in gradients and numbers alone."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.ops.checks import check_masked_sgd
from dsd_kernels.ops.layout import restride
from dsd_kernels.parameters import blocks_meet, check_grads_apart, has_memory, why_loop_group
from dsd_kernels.precision import HALF_OPTIONS
from dsd_kernels.step import Kept, Scaling, StepCall, check_loop, gather, step_loop

_DECIDING = (*HALF_OPTIONS, "full_state_dict", "mask_momentum")
_Groups = Sequence[dict[str, Any]]
Checked = dict[object, list[int]]  # the addresses with which a call passed its check last


class StepPlan:
    """All groups, gathered and checked; good for as long as nothing has changed that gathering looks at.

    Looking whether that is so costs a fraction of gathering: it compares whole lists, by identity or address.
    """

    def __init__(
        self, groups: _Groups, with_grad: Sequence[list[Tensor]], kept: Kept, scaling: Scaling, checked: Checked
    ) -> None:
        everything = [p for params in with_grad for p in params]
        reason = "parameters that share memory" if blocks_meet(everything) else ""
        gathered = [
            gather(index, group, params, kept, scaling, reason)
            for index, (group, params) in enumerate(zip(groups, with_grad, strict=True))
        ]
        self.looped = [looped for looped, _ in gathered]
        self.calls = [call for _, calls in gathered for call in calls]
        for group, looped in zip(groups, self.looped, strict=True):
            check_loop(group, looped, scaling)
        self.lasts = False
        if torch.compiler.is_compiling():  # the op's fake checks
            return
        check_grads_apart(everything)
        for call in self.calls:
            _check_once(call, checked)
        self._params = [p for group in groups for p in group["params"]]
        self._idle = [p for p in self._params if p.grad is None]
        self.lasts = self._covers(everything) and all(map(has_memory, self._params))
        if self.lasts:
            self._remember(groups, kept)

    def _covers(self, with_grad: list[Tensor]) -> bool:
        """Whether the next step may be the same: none makes state or copies, or leaves a parameter out."""
        n_taken = sum(map(len, self.looped)) + sum(len(call.owners) for call in self.calls)
        return n_taken == len(with_grad) and not any(call.new_state or call.written_back for call in self.calls)

    def _remember(self, groups: _Groups, kept: Kept) -> None:
        self._conditions = _conditions(groups, kept)
        self._state = list(kept.state.values())
        self._snapshots = [_Snapshot(call, kept) for call in self.calls]
        self._planned: list[_PlannedCall] | None = None

    def run(self, groups: _Groups, kept: Kept) -> None:
        """Step as gathered."""
        self._run_loops(groups, kept)
        for call in self.calls:
            call.run(kept)

    def _run_loops(self, groups: _Groups, kept: Kept) -> None:
        for group, looped in zip(groups, self.looped, strict=True):
            if looped:
                step_loop(group, [p for p, _ in looped], kept)

    def repeat(self, groups: _Groups, kept: Kept, scaling: Scaling) -> bool:
        """Step with new gradients and numbers; False, and nothing done, where the plan does not hold any more."""
        if not (
            self._conditions == _conditions(groups, kept)
            and _same(self._params, chain.from_iterable(group["params"] for group in groups))
            and _same(self._state, kept.state.values())
            and all(p.grad is None for p in self._idle)
            and all(snapshot.holds() for snapshot in self._snapshots)
            and self._loops_hold(groups, scaling)
        ):
            return False
        if self._planned is None:
            self._planned = _planned_calls(self._snapshots)
        done = self._repeat_planned(groups, kept, scaling)
        for call in self._planned:
            call.release()
        if done:
            return True
        if self._planned:  # of what the op may have refused, this alone is an error
            check_grads_apart(self._params)
        return self._repeat_calls(groups, kept, scaling)

    def _loops_hold(self, groups: _Groups, scaling: Scaling) -> bool:
        for group, looped in zip(groups, self.looped, strict=True):
            if any(p.grad is None for p, _ in looped):
                return False
            check_loop(group, looped, scaling)
        return True

    def _repeat_planned(self, groups: _Groups, kept: Kept, scaling: Scaling) -> bool:
        calls = self._planned
        if not calls or not all(call.renew(groups, scaling) for call in calls):
            return False
        # nothing is run before all calls are known to hold; of a first and only one, its run says so itself
        only = len(calls) == 1 and not any(self.looped)
        if not only and not all(call.run(dry_run=True) for call in calls):
            return False
        self._run_loops(groups, kept)
        return all(call.run(dry_run=False) for call in calls)

    def _repeat_calls(self, groups: _Groups, kept: Kept, scaling: Scaling) -> bool:
        if not all(snapshot.renew() for snapshot in self._snapshots):
            return False
        for call in self.calls:
            call.set_options(groups[call.group_index], scaling)
        self.run(groups, kept)
        return True


class _Snapshot:
    """One call's tensors as they were when it was gathered."""

    def __init__(self, call: StepCall, kept: Kept) -> None:
        self.call = call
        self._entries = [kept.state.get(p, {}) for p in call.owners]
        self._grads_like = _forms(call.grads)
        self._layout = _layout(call.weights)
        self._written = [*call.weights, *call.momentum_buffers, *call.copies]
        self._addresses = _addresses(self._written)

    def holds(self) -> bool:
        """Whether the optimizer keeps the same tensors, and all but gradients are at the same addresses."""
        if not self._same_state("momentum_buffer", self.call.momentum_buffers):
            return False
        if self.call.copies and not self._same_state("master_weight", self.call.weights):
            return False
        return _addresses(self._written) == self._addresses

    def renew(self) -> bool:
        """Whether weights are laid out as they were and gradients of the same kind; these are the call's then."""
        call = self.call
        grads: list[Any] = [p.grad for p in call.owners]
        if set(map(type, grads)) != {Tensor} or _forms(grads) != self._grads_like:
            return False
        if any(map(Tensor._is_zerotensor, grads)):  # one without memory behind it
            return False
        if _layout(call.weights) != self._layout:
            return False
        call.grads = grads
        if _layout(grads) != self._layout:
            call.grads = [restride(grad, weight) for grad, weight in zip(grads, call.weights, strict=True)]
        return True

    def is_plain(self) -> bool:
        """Whether `planned_sgd_` may take it: one dtype, on a device that has kernels, and contiguous."""
        call = self.call
        return (
            call.kind.device.type in ("cpu", "cuda")
            and not call.copies
            and "rounding_seed" not in call.options
            and all(t.dtype == call.kind.dtype for t in chain(call.grads, call.momentum_buffers))
            and all(map(Tensor.is_contiguous, self._written))
        )

    def _same_state(self, key: str, tensors: list[Tensor]) -> bool:
        try:
            return not tensors or _same(tensors, map(itemgetter(key), self._entries))
        except KeyError:
            return False


class _PlannedCall:
    """Calls of one group, device and dtype, masked and not, as one: the op has all addresses but those of gradients."""

    def __init__(self, calls: list[StepCall]) -> None:
        self._first = calls[0]
        self._params = [p for call in calls for p in call.owners]
        self._grads: list[Any] = []
        self._strides = list(map(Tensor.stride, self._params))
        self._written = self._params + [buffer for call in calls for buffer in call.momentum_buffers]
        rows = [row for call in calls for row in _rows(call)]
        self._plan = torch.tensor(rows, dtype=torch.int64, device="cpu")

    def renew(self, groups: _Groups, scaling: Scaling) -> bool:
        """Whether weights are laid out as planned; gradients and numbers are this step's then."""
        self._grads = [p.grad for p in self._params]
        self._first.set_options(groups[self._first.group_index], scaling)
        kind = self._first.kind
        return (
            set(map(type, self._grads)) == {Tensor}
            and (self._grads[0].device, self._grads[0].dtype) == (kind.device, kind.dtype)
            # with the sizes, which the op compares, these are the shapes
            and list(map(Tensor.stride, self._params)) == self._strides
        )

    def run(self, dry_run: bool) -> bool:
        """Whether all gradients are as planned; the step is done then, unless it is a dry run."""
        options = self._first.options
        holds = torch.ops.dsd_kernels.planned_sgd_.default(self._plan, self._grads, dry_run=dry_run, **options)
        if holds and not dry_run:
            torch.autograd.graph.increment_version(self._written)
        return bool(holds)

    def release(self) -> None:
        """To keep a gradient would keep its memory."""
        self._grads = []


def _check_once(call: StepCall, checked: Checked) -> None:
    """The full check, only for other tensors than the last time: it costs more than the step.

    Gradients are left out: they are new tensors each step, and gathering holds them to their parameter.
    """
    key = (call.group_index, call.kind)
    addresses = _addresses(chain(call.weights, call.momentum_buffers, call.masks, call.copies))
    if checked.get(key) != addresses:
        check_masked_sgd(*call.lists, **call.options)
        checked[key] = addresses


def _planned_calls(snapshots: list[_Snapshot]) -> list[_PlannedCall]:
    """None where one of the calls is not plain: all calls are run one way."""
    if not all(snapshot.is_plain() for snapshot in snapshots):
        return []
    alike: dict[object, list[StepCall]] = defaultdict(list)
    for call in (snapshot.call for snapshot in snapshots):
        alike[call.group_index, call.kind.device, call.kind.dtype].append(call)
    return [_PlannedCall(calls) for calls in alike.values()]


def _rows(call: StepCall) -> Iterable[tuple[int, int, int, int]]:
    sizes, nothing = list(map(Tensor.numel, call.weights)), [0] * len(call.weights)
    buffers, masks = _addresses(call.momentum_buffers) or nothing, _addresses(call.masks) or nothing
    return zip(sizes, _addresses(call.weights), buffers, masks, strict=True)


def _conditions(groups: _Groups, kept: Kept) -> list[object]:
    """All but tensors that gathering looks at."""
    conditions: list[object] = [kept.masks.version, len(kept.state)]
    for group in groups:
        conditions += [len(group["params"]), group["momentum"] != 0, why_loop_group(group)]
        conditions += [group[name] for name in _DECIDING]
    return conditions


def _layout(tensors: Sequence[Tensor]) -> tuple[list[Any], list[Any]]:
    return list(map(Tensor.size, tensors)), list(map(Tensor.stride, tensors))


def _addresses(tensors: Iterable[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _forms(grads: Iterable[Tensor]) -> set[object]:
    return set(map(attrgetter("dtype", "layout"), grads))


def _same(ours: Sequence[Any], theirs: Iterable[Any]) -> bool:
    return all(map(is_, ours, theirs))
