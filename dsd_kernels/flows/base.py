"""What all flows share: moving along a schedule, entering its phases, stop and resume."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from dsd_kernels import masks
from dsd_kernels.flows.arguments import check_flow, check_options, plain_options
from dsd_kernels.flows.momentum import apply_policy
from dsd_kernels.flows.partitions import Partitions
from dsd_kernels.flows.pruned_values import PrunedValues
from dsd_kernels.flows.state import check_state_dict
from dsd_kernels.masks import PlanOptions, PruningPlan
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase, Schedule
from dsd_kernels.seeds import derived_seed
from dsd_kernels.structure import UNSTRUCTURED


class Flow:
    """Training by a schedule: prunes, densifies and scales the learning rate where a phase begins.

    A flow of one's own is a schedule, as in the example; `begin`, `changes` and `leave` are there to be overridden by
    flows that need more.

    Args:
        optimizer: a `MaskedSGD` without masks, over parameters of the model.
        model: the module whose parameters are pruned.
        schedule: the phases. One with sparsity above 0 prunes the model where it begins, by `masks.plan`; one with
            sparsity 0 drops all masks.
        unit: what one call of `step` stands for, "epoch" or "step"; for people, and compared on resuming.
            Default "epoch".
        selection: "magnitude" prunes the smallest weights; "random" any of them, by the same plan and in the same exact
            number: the control for every claim about magnitude. Default "magnitude".
        seed: what random choices depend on. Default 0.
        options: distribution, exclude_first, include, exclude, min_weights and structure, as in `masks.plan`. With a
            structure such as "2:4" every sparsity above 0 must be its own, here 0.5.

    Raises:
        TypeError, ValueError: an argument of another type; an optimizer that has masks already; a model with nothing to
            prune; what `masks.plan` raises. Nothing has changed then.

    Notes:
        Only parameters that the optimizer owns are pruned. The first phase is entered at construction: build the flow
        first, load the state dicts of model, optimizer and flow after it, in any order. Masks live in the optimizer's
        state dict, not in the flow's.
        The learning rate in use is group["lr"] * group["lr_factor"]; a flow writes only the second, in every group at
        every `step`, so a scheduler of torch's keeps the first to itself.
        Where sparsity rises or falls from phase to phase, the mask is chosen anew, exactly: pruned weights are 0, so
        they are the first to be pruned again, of these the lowest in memory; a fall frees no more than it says.
        Random masks need no state: a mask depends on the seed and on the phase that last let weights grow, so that it
        stays part of the next one while sparsity only rises, and is another one after that.
        A phase that restores values costs one copy of the pruned layers, in memory and in the state dict, while they
        are sparse.

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
        selection: str = "magnitude",
        seed: int = 0,
        **options: Unpack[PlanOptions],
    ) -> None:
        check_options(type(self).__name__, options)
        check_flow(optimizer, model, schedule, unit, selection, seed)
        self.optimizer = optimizer
        self.model = model
        self.schedule = schedule
        self.unit = unit
        self.selection = selection
        self.seed = int(seed)
        self._options = options
        self._position = 0
        self._index, _ = schedule.at(0)
        self._plan: PruningPlan | None = None
        self._pruned_values = PrunedValues(optimizer)
        self._check_model()
        self.begin()
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
    def phase_position(self) -> int:
        """Units done of the phase that training is in, for learning rates that start again with each phase.

        Notes:
            A phase that ends the schedule may have length 0: divide by ``max(1, phase.length)``.
        """
        return self._position - self.schedule.starts[self._index]

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
            self.leave(phase)
            self._index = index
            self.enter(phase)
        self._position += 1
        self._set_lr_factor()

    def cut(self, plan: PruningPlan) -> Partitions:  # noqa: ARG002
        """The partitions of the plan's parameters that phases may grow: none here."""
        return ()

    def begin(self) -> None:
        """Start the first phase, once all arguments are checked; override for what comes before it."""
        self.enter(self.phase)

    def leave(self, following: Phase) -> None:
        """Do what the end of the present phase asks for: nothing here."""

    def enter(self, phase: Phase) -> None:
        """Do what the beginning of a phase asks for: restore, prune, densify, then the momentum policy."""
        pruned, grown = self.changes(phase)
        before = self.optimizer.masks if phase.momentum == "zero_regrown" else {}
        if phase.regrown == "restore":
            self._pruned_values.restore(pruned)
        self.prune(pruned)
        if phase.regrown == "restore":
            self._pruned_values.restore(grown)
        self.optimizer.densify(grown)
        self._pruned_values.forget(grown if self._restores(self._index + 1) else list(self._pruned_values.kept))
        apply_policy(self.optimizer, phase.momentum, before)

    def changes(self, phase: Phase) -> tuple[Mapping[Tensor, float], Sequence[Tensor]]:
        """What gets a new mask where a phase begins, {parameter: sparsity}, and what has none from then on."""
        if phase.sparsity == 0:
            return {}, self.optimizer.masked_parameters
        self._plan = self.make_plan(phase.sparsity)
        return self._plan.sparsities(), []

    def prune(self, sparsities: Mapping[Tensor, float]) -> None:
        """Give parameters a new mask: of the smallest weights, or a random one."""
        if self.selection == "random":
            self.prune_at_random(sparsities, "masks", self._last_regrowth())
        else:
            self._remember(sparsities)
            self.optimizer.prune(sparsities, structure=self._structure)

    def prune_at_random(self, sparsities: Mapping[Tensor, float], purpose: str, index: int = 0) -> None:
        """Give parameters a random mask, out of the seed and the purpose and index of the event."""
        self._remember(sparsities)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, purpose, index))
        counts = list(sparsities.values())
        chosen = masks.random_masks(list(sparsities), counts, generator, structure=self._structure)
        self.optimizer.set_masks(dict(zip(sparsities, chosen, strict=True)))

    def make_plan(self, sparsity: float) -> PruningPlan:
        """The plan of the model as it is now, restricted to the optimizer's parameters."""
        explicit = isinstance(self._options.get("distribution"), Mapping)
        return masks.plan(self.model, None if explicit else sparsity, parameters=self._parameters(), **self._options)

    def state_dict(self) -> dict[str, Any]:
        """Position, unit, phases and choices, in plain types, and the tensors that the flow keeps; most keep none.

        Notes:
            Masks and momentum are in the optimizer's state dict.
        """
        return {
            "position": self._position,
            "unit": self.unit,
            "phases": self.schedule.to_dicts(),
            "choices": self._choices(),
            "tensors": self.kept_tensors(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to where another flow of the same schedule and choices stood, without pruning or dropping a mask.

        Args:
            state_dict: as `state_dict` returns it; one of an earlier version will do.

        Raises:
            TypeError, ValueError: not a flow's state dict, or one of another schedule or unit, of other choices
                (selection, seed, partitions, options of `masks.plan`), and what differs; without the values that a
                phase is to restore, where the optimizer has masks. Nothing has changed then.
        """
        tensors = check_state_dict(self, state_dict)
        self._position = int(state_dict["position"])
        self._index, _ = self.schedule.at(self._position)
        self._plan = None
        self.adopt_tensors(tensors)
        self._set_lr_factor()

    @property
    def keeps_tensors(self) -> bool:
        """Whether the state dict has tensors at any time: where a phase restores values."""
        return any(phase.regrown == "restore" for phase in self.schedule)

    def kept_tensors(self) -> dict[str, dict[str, Tensor]]:
        """What the flow keeps beside the model, by purpose and by the name of a parameter or buffer of the model."""
        if not self._pruned_values.kept:
            return {"pruned_values": {}}
        names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        return {"pruned_values": {names[p]: value for p, value in self._pruned_values.kept.items()}}

    def adopt_tensors(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep what `kept_tensors` of another flow returned, checked and copied already."""
        parameters = dict(self.model.named_parameters())
        values = tensors.get("pruned_values", {})
        self._pruned_values.kept = {parameters[name]: value for name, value in values.items()}

    def _check_model(self) -> None:
        """Raise for what would otherwise be found out only where a phase begins."""
        rules = self.make_plan(0.0)
        prunes = {phase.sparsity for phase in self.schedule if phase.sparsity > 0}
        if prunes and not rules.prunable:
            raise ValueError(f"model: expected a parameter to prune, there is none\n{rules}")
        self.partitions = self.cut(rules)
        for i, phase in enumerate(self.schedule):
            if phase.grown is not None and phase.grown >= len(self.partitions):
                raise ValueError(f"schedule: phases[{i}]: there are {len(self.partitions)} partitions, got {phase}")
        if "structure" in self._options:
            for sparsity in prunes:
                self.make_plan(sparsity)

    def _choices(self) -> dict[str, Any]:
        """What settles, beside the schedule, which weights are pruned."""
        partitions = [list(names) for names in self.partitions]
        return {
            "selection": self.selection,
            "seed": self.seed,
            "partitions": partitions,
            **plain_options(self._options),
        }

    @property
    def _structure(self) -> str:
        return self._options.get("structure", UNSTRUCTURED)

    def _remember(self, parameters: Iterable[Tensor]) -> None:
        """Keep what is about to be pruned, if a phase will restore it."""
        if self._restores(self._index):
            self._pruned_values.remember(parameters)

    def _restores(self, first: int) -> bool:
        """Whether a phase restores values, of those from the first on."""
        return any(phase.regrown == "restore" for phase in self.schedule.phases[first:])

    def _last_regrowth(self) -> int:
        """The last phase until now before which pruned weights were let go."""
        phases = self.schedule.phases
        starts = (i for i in range(self._index, 0, -1) if _lets_grow(phases[i - 1], phases[i]))
        return next(starts, 0)

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def _set_lr_factor(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr_factor"] = self.phase.lr_factor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.unit} {self._position} of {self.schedule.length}, in {self.phase})"


def _lets_grow(before: Phase, phase: Phase) -> bool:
    return before.grown is not None or phase.sparsity < before.sparsity
