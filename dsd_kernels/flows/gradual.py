"""Gradual magnitude pruning (Zhu & Gupta 2017)."""

from collections.abc import Mapping, Sequence
from typing import Unpack

from torch import nn

from dsd_kernels.flows.arguments import FlowOptions, check_count, check_lengths, check_lr_factors, schedule_of
from dsd_kernels.flows.base import Flow
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase
from dsd_kernels.sparsity import check_sparsity


class Gradual(Flow):
    """Gradual magnitude pruning: sparsity rises along a cubic curve, fast first and ever slower, then stays.

    ``s_i = s_f + (s_0 - s_f) * (1 - i / n)^3  at  t_0 + i * every,  i = 0 ... n``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module whose parameters are pruned.
        dense: t_0, the length of the dense training before it, in units.
        every: how many units apart masks are chosen anew.
        n_prunes: n, how many times after the first; the target is reached n * every units after t_0.
        final: length of the training at the target.
        sparsity: s_f, the target: fraction of the prunable weights, in [0, 1).
        initial_sparsity: s_0, pruned at t_0, in [0, 1); above the target, sparsity falls. Default 0.
        lr_factors: factors of the learning rate: (dense, while sparsity changes, final). Default (1, 1, 1).
        options: unit, selection, seed as in `Flow`; those of `masks.plan`. No dict as distribution, and no structure
            such as "2:4": each has one sparsity only.

    Raises:
        TypeError, ValueError: an argument of another type, length or range; see also `Flow`. Nothing has changed then.

    Notes:
        What the source leaves open, and what is done here:
        - Every mask is chosen by exact counts from the weights as they are. Pruned ones are 0, so they stay pruned as
          sparsity rises; a kept weight that is exactly 0 counts as pruned ones do, and ties go by lowest index.
        - ``distribution="erk"`` rounds the layers' counts so that their total is exact: where sparsity rises by a few
          weights only, a layer may be asked for one less than before, which then comes back, from 0.
        - As sparsity falls, exactly the difference is let go: of the pruned weights those of highest index, from 0.
        - The fraction is that of each layer; with ``distribution="global"`` it is that of all.
        - Momentum of kept weights runs on.

    Source: Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression"
        (arXiv 1710.01878), equation 1.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import Gradual
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1)
        >>> flow = Gradual(optimizer, model, dense=2, every=1, n_prunes=4, final=2, sparsity=0.75)
        >>> [round(phase.sparsity, 3) for phase in flow.phases]
        [0.0, 0.0, 0.434, 0.656, 0.738, 0.75]
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        dense: int,
        every: int,
        n_prunes: int,
        final: int,
        sparsity: float,
        initial_sparsity: float = 0.0,
        lr_factors: Sequence[float] = (1, 1, 1),
        **options: Unpack[FlowOptions],
    ) -> None:
        check_lengths(dense=dense, final=final)
        check_count("every", every)
        check_count("n_prunes", n_prunes)
        check_sparsity("sparsity", sparsity)
        check_sparsity("initial_sparsity", initial_sparsity)
        if isinstance(options.get("distribution"), Mapping):
            raise ValueError("distribution: expected uniform, erk or global, a dict has one sparsity for all times")
        first, rising, last = check_lr_factors(lr_factors, "3 values", 3)
        curve = [cubic(initial_sparsity, sparsity, i / n_prunes) for i in range(n_prunes)]
        phases = [
            Phase("dense", dense, lr_factor=first),
            *(Phase("gradual", every, s, rising) for s in curve),
            Phase("final", final, sparsity, last),
        ]
        super().__init__(optimizer, model, schedule_of(*phases), **options)


def cubic(initial: float, final: float, progress: float) -> float:
    """The sparsity at a share of the way, in [0, 1]: initial at 0, final at 1."""
    return final + (initial - final) * (1 - progress) ** 3
