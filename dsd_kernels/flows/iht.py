"""IHT: training by iterative hard thresholding (Jin et al. 2016)."""

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


class IHT(Flow):
    """Iterative hard thresholding: threshold and train what is left, release and train all, in turn; it ends sparse.

    ``warm start: W <- SGD(W);  each iteration: W <- O_k(W), the k largest |W| of each layer, then for `sparse` units
    W <- select(mask, SGD(W), 0), then for `dense` units W <- SGD(W);  at the end: W <- O_k(W)``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module whose parameters are pruned.
        warm_start: length of the dense training before the first threshold, in units; 0 for a trained model.
        sparse: length of the phases that train only the kept weights.
        dense: length of the phases that train all weights.
        iterations: how many times sparse and dense are run.
        sparsity: fraction of the prunable weights that each threshold prunes, in [0, 1); None where `distribution` is a
            dict. Default None.
        lr_factors: factors of the learning rate: (warm start, sparse, dense). Default (1, 1, 1).
        momentum: policy at the start of dense phases (see `Phase`): "keep", "zero_regrown" or "zero_all".
            Default "keep".
        regrown: what released weights start from: "zero" or "restore". Default "zero".
        options: unit, selection, seed as in `Flow`; those of `masks.plan`.

    Raises:
        TypeError, ValueError: an argument of another type, length or range; see also `Flow`. Nothing has changed then.

    Notes:
        What the source leaves open, and what is done here:
        - The sparsity is the same in every iteration, and in every layer unless `distribution` says otherwise; the
          first convolution stays dense, as in `DSD`.
        - Nothing is said of momentum: it runs on, but that of pruned weights is 0 (see `MaskedSGD`).
        - The last threshold comes after the last unit, without training after it: measure the accuracy there. A last
          phase of sparse training is `PruneOnce` on top, or an iteration of `DSD` with ``redense=0``.

    Source: Jin et al. 2016, "Training Skinny Deep Neural Networks with Iterative Hard Thresholding Methods" (arXiv
        1607.05423), from its abstract; details of its loop are second-hand.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import IHT
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1)
        >>> iht = IHT(optimizer, model, warm_start=1, sparse=1, dense=1, iterations=1, sparsity=0.5)
        >>> while not iht.finished:
        ...     print(iht.phase.name, optimizer.sparsity().masked)
        ...     iht.step()  # after each epoch
        warm start 0.0
        sparse 0.5
        dense 0.0
        >>> iht.phase.name, optimizer.sparsity().masked
        ('threshold', 0.5)
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        warm_start: int,
        sparse: int,
        dense: int,
        iterations: int,
        sparsity: float | None = None,
        lr_factors: Sequence[float] = (1, 1, 1),
        momentum: str = "keep",
        regrown: str = "zero",
        **options: Unpack[FlowOptions],
    ) -> None:
        check_count("iterations", iterations)
        check_lengths(warm_start=warm_start, sparse=sparse, dense=dense)
        pruned = phase_sparsity(model, sparsity, options)
        first, in_sparse, in_dense = check_lr_factors(lr_factors, "3 values", 3)
        turn = [
            Phase("sparse", sparse, pruned, in_sparse),
            Phase("dense", dense, 0.0, in_dense, momentum, regrown),
        ]
        warm, threshold = Phase("warm start", warm_start, lr_factor=first), Phase("threshold", 0, pruned, in_dense)
        super().__init__(optimizer, model, schedule_of(warm, *turn * iterations, threshold), **options)
