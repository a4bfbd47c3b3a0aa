"""AC/DC: alternating compressed and decompressed training (Peste et al., NeurIPS 2021)."""

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from dsd_kernels.flows.arguments import (
    FlowOptions,
    check_count,
    check_lengths,
    check_lr_factors,
    phase_sparsity,
    schedule_of,
)
from dsd_kernels.flows.base import Flow
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase


class ACDC(Flow):
    """AC/DC: a dense warm-up, then sparse and dense in turn, then sparse to the end; momentum starts anew when dense.

    ``warm-up: W <- SGD(W);  each iteration: mask = the largest |W|, W <- select(mask, SGD(W), 0); all momentum = 0,
    W <- SGD(W);  at the end: mask = the largest |W|, W <- select(mask, SGD(W), 0)``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module whose parameters are pruned.
        warmup: length of the first, dense phase, in units.
        sparse, dense: lengths of the phases that alternate.
        iterations: how many times sparse and dense are run.
        final: length of the last, sparse phase; 0 prunes at the very end.
        sparsity: fraction of the prunable weights that the sparse phases prune, in [0, 1); None where `distribution` is
            a dict. Default None.
        lr_factors: factors of the learning rate: (warmup, sparse, dense, final). Default (1, 1, 1, 1).
        momentum: policy at the start of dense phases after the warm-up (see `Phase`). Default "zero_all".
        regrown: what released weights start from: "zero" or "restore". Default "zero".
        options: unit, selection, seed as in `Flow`; those of `masks.plan`. The paper has ``distribution="global"`` and
            "uniform".

    Raises:
        TypeError, ValueError: an argument of another type, length or range; see also `Flow`. Nothing has changed then.

    Notes:
        The authors' code sets all momentum to 0 at each dense start, and says that stale momentum hurts; hence the
        default. At sparse starts momentum runs on, but that of pruned weights is 0 (see `MaskedSGD`).
        Choices of ours: the first convolution stays dense unless ``exclude_first=False``; the learning rate is the
        user's scheduler's, which runs on over all phases.

    Source: Peste et al. 2021, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks", and its
        authors' code. For 100 epochs of ResNet-50: ``warmup=10, sparse=5, dense=5`` and a long `final`.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import ACDC
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> acdc = ACDC(optimizer, model, warmup=1, sparse=1, dense=1, iterations=2, final=2, sparsity=0.75)
        >>> [f"{phase.name} {phase.length}" for phase in acdc.phases]
        ['warmup 1', 'sparse 1', 'dense 1', 'sparse 1', 'dense 1', 'final 2']
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        warmup: int,
        sparse: int,
        dense: int,
        iterations: int,
        final: int,
        sparsity: float | None = None,
        lr_factors: Sequence[float] = (1, 1, 1, 1),
        momentum: str = "zero_all",
        regrown: str = "zero",
        **options: Unpack[FlowOptions],
    ) -> None:
        check_count("iterations", iterations)
        check_lengths(warmup=warmup, sparse=sparse, dense=dense, final=final)
        pruned = phase_sparsity(model, sparsity, options)
        first, in_sparse, in_dense, last = check_lr_factors(lr_factors, "4 values", 4)
        turn = [
            Phase("sparse", sparse, pruned, in_sparse),
            Phase("dense", dense, 0.0, in_dense, momentum, regrown),
        ]
        warm, to_end = Phase("warmup", warmup, lr_factor=first), Phase("final", final, pruned, last)
        super().__init__(optimizer, model, schedule_of(warm, *turn * iterations, to_end), **options)
