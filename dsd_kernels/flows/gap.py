"""GaP: scheduled grow-and-prune, one partition of the layers after the other (Ma et al., ICLR 2022)."""

import random
from collections.abc import Mapping, Sequence
from typing import Unpack

from torch import Tensor, nn

from dsd_kernels.flows.arguments import FlowOptions, check_count, check_lengths, check_lr_factors, phase_sparsity
from dsd_kernels.flows.base import Flow
from dsd_kernels.flows.partitions import Partitions, cut, n_partitions
from dsd_kernels.layers import PruningPlan
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase, Schedule, check_choice
from dsd_kernels.seeds import check_seed, derived_seed

ORDERS = ("cyclic", "random")


class GaP(Flow):
    """C-GaP: from random masks, grow one partition of the layers to dense, train, prune it back and grow the next.

    ``start: random masks;  step: prune the partition grown last, grow partition i, then for `grow` units
    W <- select(masks of the others, SGD(W), 0);  at the end: prune the last one, then `final` units with all masks``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module whose parameters are pruned.
        partitions: how many partitions the prunable layers are cut into, or the names or patterns of each.
        grow: length of a step, in units.
        rounds: how often every partition is grown.
        final: length of the fine-tuning at the end; 0 ends with the last pruning.
        sparsity: fraction of the prunable weights that masks prune, in [0, 1); None where `distribution` is a dict.
            Default None.
        order: "cyclic", or "random": another order in every round, out of the seed; a partition that ends a round may
            begin the next. Default "cyclic".
        lr_factors: factors of the learning rate: (grow, final). Default (1, 1).
        momentum: policy at the start of every step and of the fine-tuning (see `Phase`). Default "zero_all".
        regrown: what a grown partition's pruned weights start from: "zero" or "restore". Default "zero".
        options: unit, selection, seed as in `Flow`; those of `masks.plan`, but for ``distribution="global"``, whose
            counts would change with the partition that is dense.

    Raises:
        TypeError, ValueError: an argument of another type, length or range; more partitions than layers, a layer in
            none or two of them; see also `Flow`. Nothing has changed then.

    Notes:
        Exactly one partition is dense at a time, and its predecessor is pruned at the same instant at which it grows;
        the masks of the others do not change. A pruned partition has the exact counts of the plan. A partition that is
        grown twice running is pruned and grown at once: its small weights start again from 0.
        The authors restart the optimizer and the learning rate's schedule with every step. The first is "zero_all", but
        for dampening: a new optimizer takes its first gradient whole, a momentum of 0 takes (1 - dampening) of it. The
        second is for the user's scheduler, such as ``CosineAnnealingWarmRestarts(optimizer, T_0=grow)``, or a function
        of `phase_position`.
        Choices of ours: partitions of equally many layers that follow one another, where their number is given; the
        random masks have the plan's exact counts; layers that the plan leaves dense stay so and train all the time.

    Source: Ma et al. 2022, "Effective Model Sparsification by Scheduled Grow-and-Prune Methods" (arXiv 2106.09857), and
        its authors' code. There: steps of 5 or 10 epochs, 10 rounds, 4 partitions for ResNet-50, 3 for the Transformer.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import GaP
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> gap = GaP(optimizer, model, partitions=2, grow=1, rounds=1, final=1, sparsity=0.75)
        >>> while not gap.finished:
        ...     print(gap.phase.name, gap.phase.grown, [int(mask.sum()) for mask in optimizer.masks.values()])
        ...     gap.step()  # after each epoch
        grow 0 [64]
        grow 1 [64]
        final None [64, 64]
        >>> gap.partitions
        (('0.weight',), ('1.weight',))
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        partitions: int | Sequence[Sequence[str]],
        grow: int,
        rounds: int,
        final: int,
        sparsity: float | None = None,
        order: str = "cyclic",
        lr_factors: Sequence[float] = (1, 1),
        momentum: str = "zero_all",
        regrown: str = "zero",
        **options: Unpack[FlowOptions],
    ) -> None:
        check_choice("order", order, ORDERS)
        check_count("grow", grow)
        check_count("rounds", rounds)
        check_lengths(final=final)
        check_seed("seed", options.get("seed", 0))
        if options.get("distribution") == "global":
            raise ValueError("distribution: expected uniform, erk or a dict, whose counts stay, got 'global'")
        pruned = phase_sparsity(model, sparsity, options)
        while_growing, at_end = check_lr_factors(lr_factors, "2 values", 2)
        self._wanted, self._order = partitions, order
        grown = self.growth(n_partitions(partitions), rounds, options.get("seed", 0))
        phases = [
            *(Phase("grow", grow, pruned, while_growing, momentum, regrown, i) for i in grown),
            Phase("final", final, pruned, at_end, momentum),
        ]
        super().__init__(optimizer, model, Schedule(phases), **options)

    def growth(self, n: int, rounds: int, seed: int) -> list[int]:
        """Which of the n partitions each step grows."""
        if self._order == "cyclic":
            return [*range(n)] * rounds
        return [i for r in range(rounds) for i in random.Random(derived_seed(seed, "order", r)).sample(range(n), n)]

    def cut(self, plan: PruningPlan) -> Partitions:
        """The partitions that were asked for."""
        return cut(plan, self._wanted)

    def begin(self) -> None:
        """Random masks everywhere, then the first phase."""
        self.prune_at_random(self.make_plan(self.phase.sparsity).sparsities(), "start")
        super().begin()

    def changes(self, phase: Phase) -> tuple[Mapping[Tensor, float], Sequence[Tensor]]:
        """Prune what is dense, which is the partition grown last, and grow the phase's own."""
        self._plan = self.make_plan(phase.sparsity)
        masked = set(self.optimizer.masked_parameters)
        sparsities = {p: sparsity for p, sparsity in self._plan.sparsities().items() if p not in masked}
        names = () if phase.grown is None else self.partitions[phase.grown]
        return sparsities, [row.parameter for row in self._plan.prunable if row.name in names]
