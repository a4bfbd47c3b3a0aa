"""What all flows share: moving along a schedule, entering its phases, stop and resume."""

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

from torch import Tensor, nn

from dsd_kernels import masks
from dsd_kernels.masks import PlanOptions, PruningPlan
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase, Schedule

UNITS = ("epoch", "step")


class Flow:
    """Training by a schedule: prunes, densifies and scales the learning rate where a phase begins.

    A flow of one's own is a schedule, as in the example; override `enter` for phases that need more.

    Args:
        optimizer: a `MaskedSGD` without masks, over parameters of the model.
        model: the module whose parameters are pruned.
        schedule: the phases. One with sparsity above 0 prunes the model where it begins, by `masks.plan`; one with
            sparsity 0 drops all masks.
        unit: what one call of `step` stands for, "epoch" or "step"; for people, and compared on resuming.
            Default "epoch".
        options: distribution, exclude_first, include, exclude and min_weights, as in `masks.plan`.

    Raises:
        TypeError, ValueError: an argument of another type; an optimizer that has masks already; a model with nothing to
            prune; what `masks.plan` raises. Nothing has changed then.

    Notes:
        Only parameters that the optimizer owns are pruned. The first phase is entered at construction: build the flow
        first, load the state dicts of model, optimizer and flow after it, in any order. Masks live in the optimizer's
        state dict, not in the flow's.
        The learning rate in use is group["lr"] * group["lr_factor"]; a flow writes only the second, in every group at
        every `step`, so a scheduler of torch's keeps the first to itself.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import Flow
        >>> from dsd_kernels.schedule import Phase, Schedule
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1)
        >>> flow = Flow(optimizer, model, Schedule([Phase("dense", 1), Phase("sparse", 2, sparsity=0.75)]))
        >>> for epoch in range(3):
        ...     print(flow.phase.name, optimizer.sparsity().masked)
        ...     flow.step()  # after the epoch
        dense 0.0
        sparse 0.75
        sparse 0.75
        >>> flow.finished
        True
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        schedule: Schedule,
        *,
        unit: str = "epoch",
        **options: Unpack[PlanOptions],
    ) -> None:
        _check_arguments(optimizer, model, schedule, unit)
        self.optimizer = optimizer
        self.model = model
        self.schedule = schedule
        self.unit = unit
        self._options = options
        self._position = 0
        self._plan: PruningPlan | None = None
        rules = self.make_plan(0.0)
        if not rules.prunable:
            raise ValueError(f"model: expected a parameter to prune, there is none\n{rules}")
        self._index, phase = schedule.at(0)
        self.enter(phase)
        self._set_lr_factor()

    @property
    def phase(self) -> Phase:
        """The phase that training is in; after the end, the one that it ended with."""
        return self.schedule.phases[self._index]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases of the schedule, in order."""
        return tuple(self.schedule)

    @property
    def position(self) -> int:
        """Units done so far."""
        return self._position

    @property
    def finished(self) -> bool:
        """Whether all units of the schedule are done."""
        return self._position == self.schedule.length

    @property
    def plan(self) -> PruningPlan | None:
        """The plan by which this object pruned last; None before that, and after loading a state dict."""
        return self._plan

    def step(self) -> None:
        """Count one unit as done; if a phase begins here, enter it.

        Notes:
            Call it once after each epoch (or step), as one calls a learning rate scheduler, before or after that. After
            the end it does nothing: the last phase stays, masks and learning rate factor with it.
        """
        if self.finished:
            return
        index, phase = self.schedule.at(self._position + 1)
        if index != self._index:
            self.enter(phase)
        self._position += 1
        self._index = index
        self._set_lr_factor()

    def enter(self, phase: Phase) -> None:
        """Do what the beginning of a phase asks for: prune or densify, then the momentum policy."""
        masks_before = self.optimizer.masks if phase.momentum == "zero_regrown" else {}
        if phase.sparsity > 0:
            self._plan = self.make_plan(phase.sparsity)
            self.optimizer.prune(self._plan.sparsities())
        else:
            self.optimizer.densify()
        if phase.momentum == "zero_all":
            self._zero_all_momentum()
        elif phase.momentum == "zero_regrown":
            self._zero_regrown_momentum(masks_before)

    def make_plan(self, sparsity: float) -> PruningPlan:
        """The plan of the model as it is now, restricted to the optimizer's parameters."""
        explicit = isinstance(self._options.get("distribution"), Mapping)
        return masks.plan(self.model, None if explicit else sparsity, parameters=self._parameters(), **self._options)

    def state_dict(self) -> dict[str, Any]:
        """Position, unit and phases, in plain types; masks and momentum are in the optimizer's."""
        return {"position": self._position, "unit": self.unit, "phases": self.schedule.to_dicts()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to where another flow with the same schedule stood, without pruning or dropping a mask.

        Args:
            state_dict: as `state_dict` returns it.

        Raises:
            TypeError, ValueError: not a flow's state dict, or one of another schedule or unit, and what differs;
                nothing has changed then.
        """
        self._check_state_dict(state_dict)
        self._position = int(state_dict["position"])
        self._index, _ = self.schedule.at(self._position)
        self._plan = None
        self._set_lr_factor()

    def _check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected a dict, got {type(state_dict).__name__}")
        expected = self.state_dict()
        if set(state_dict) != set(expected):
            raise ValueError(f"state_dict: expected the keys {list(expected)}, got {list(state_dict)}")
        if state_dict["unit"] != self.unit:
            raise ValueError(f"state_dict: expected unit {self.unit!r}, got {state_dict['unit']!r}")
        loaded = Schedule.from_dicts(state_dict["phases"])
        if len(loaded) != len(self.schedule):
            raise ValueError(f"state_dict: expected {len(self.schedule)} phases, got {len(loaded)}")
        for i, (ours, theirs) in enumerate(zip(self.schedule, loaded, strict=True)):
            if ours != theirs:
                raise ValueError(f"state_dict: phases[{i}]: expected {ours!r}, got {theirs!r}")
        self.schedule.at(state_dict["position"])

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def _set_lr_factor(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr_factor"] = self.phase.lr_factor

    def _momentum_buffers(self) -> Iterator[tuple[Tensor, Tensor]]:
        for parameter, state in self.optimizer.state.items():
            if state.get("momentum_buffer") is not None:
                yield parameter, state["momentum_buffer"]

    def _zero_all_momentum(self) -> None:
        for _, buffer in self._momentum_buffers():
            buffer.zero_()

    def _zero_regrown_momentum(self, masks_before: Mapping[Tensor, Tensor]) -> None:
        masks_now = self.optimizer.masks
        for parameter, buffer in self._momentum_buffers():
            if parameter in masks_before:
                regrown = ~masks_before[parameter]
                if parameter in masks_now:
                    regrown &= masks_now[parameter]
                buffer.masked_fill_(regrown, 0.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.unit} {self._position} of {self.schedule.length}, in {self.phase})"


def _check_arguments(optimizer: object, model: object, schedule: object, unit: object) -> None:
    for name, value, expected in (
        ("optimizer", optimizer, MaskedSGD),
        ("model", model, nn.Module),
        ("schedule", schedule, Schedule),
    ):
        if not isinstance(value, expected):
            raise TypeError(f"{name}: expected a {expected.__name__}, got {type(value).__name__}")
    if unit not in UNITS:
        raise ValueError(f"unit: expected epoch or step, got {unit!r}")
    if optimizer.masks:  # type: ignore[attr-defined]
        raise ValueError(
            f"optimizer: expected one without masks, {len(optimizer.masks)} parameters have one; "  # type: ignore[attr-defined]
            "build the flow before loading the optimizer's state, or call optimizer.densify() first"
        )
