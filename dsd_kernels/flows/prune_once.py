"""Prune once and stay sparse: the plain method, and a control for those that come back."""

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from dsd_kernels.flows.arguments import FlowOptions, check_lengths, check_lr_factors, phase_sparsity, schedule_of
from dsd_kernels.flows.base import Flow
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase


class PruneOnce(Flow):
    """Train, prune once, and train what is left to the end.

    ``dense: W <- SGD(W);  once: mask = all but the round(s * n) smallest |W| of each layer;  sparse:
    W <- select(mask, SGD(W), 0)``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module whose parameters are pruned.
        dense: length of the first phase, in units; 0 prunes at once, a trained model or an untrained one.
        sparse: length of the sparse phase; 0 prunes at the very end.
        sparsity: fraction of the prunable weights to prune, in [0, 1); None where `distribution` is a dict.
            Default None.
        lr_factors: factors of the learning rate: (dense, sparse). Default (1, 1).
        options: unit, selection, seed as in `Flow`; those of `masks.plan`.

    Raises:
        TypeError, ValueError: an argument of another type, length or range; see also `Flow`. Nothing has changed then.

    Notes:
        With the lengths of a `DSD`, it is the control that stays sparse for the same budget; with
        ``selection="random"``, it trains inside a random mask. Momentum of kept weights runs on.

    Source: the "truncate once" part of Han et al. 2017 (arXiv 1607.04381), without its last phase.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import PruneOnce
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1)
        >>> flow = PruneOnce(optimizer, model, dense=1, sparse=3, sparsity=0.5, structure="2:4")
        >>> flow.step()
        >>> model.weight.view(16, 4, 4).count_nonzero(dim=-1).unique()
        tensor([2])
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        dense: int,
        sparse: int,
        sparsity: float | None = None,
        lr_factors: Sequence[float] = (1, 1),
        **options: Unpack[FlowOptions],
    ) -> None:
        check_lengths(dense=dense, sparse=sparse)
        pruned = phase_sparsity(model, sparsity, options)
        in_dense, in_sparse = check_lr_factors(lr_factors, "2 values", 2)
        phases = [Phase("dense", dense, lr_factor=in_dense), Phase("sparse", sparse, pruned, in_sparse)]
        super().__init__(optimizer, model, schedule_of(*phases), **options)
