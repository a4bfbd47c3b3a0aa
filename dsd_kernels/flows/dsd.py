"""DSD: dense, sparse, dense training (Han et al., ICLR 2017)."""

from collections.abc import Mapping, Sequence
from typing import Unpack

from torch import nn

from dsd_kernels.flows.arguments import FlowOptions, check_count, check_lr_factors, per_iteration, phase_sparsity
from dsd_kernels.flows.base import Flow
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase, Schedule, check_length
from dsd_kernels.sparsity import check_sparsity


class DSD(Flow):
    """Dense-sparse-dense training: train, prune and train what is left, then release the pruned weights and train all.

    ``dense: W <- SGD(W);  sparse, once: mask = all but the round(s * n) smallest |W| of each layer, then each step
    W <- select(mask, SGD(W), 0);  re-dense: W <- SGD(W), pruned weights from 0;  iterate from sparse``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module whose parameters are pruned.
        dense: length of the first phase, in units; 0 starts sparse at once, from a trained model.
        sparse: length of the sparse phases: an int, or one per iteration. 0 leaves a phase out.
        redense: length of the re-dense phases, in the same way; with 0 in the last iteration the run ends sparse.
        sparsity: fraction of the prunable weights that the sparse phases prune, in [0, 1): a float, or one per
            iteration; None where `distribution` is a dict. Default None.
        iterations: how many times sparse and re-dense are run. Default 1.
        lr_factors: factors of the learning rate: (dense, sparse, redense), the last two for every iteration, or one for
            each of the 1 + 2 * iterations phases. Default (1, 1, 0.1).
        momentum: policy at the start of re-dense phases (see `Phase`): "keep", "zero_regrown" or "zero_all".
            Default "keep".
        regrown: what pruned weights start from in re-dense phases: "zero", or "restore", the value before they were
            pruned. Default "zero".
        options: unit, selection, seed as in `Flow`; distribution, exclude_first, include, exclude, min_weights and
            structure as in `masks.plan`. Default: epochs, by magnitude, uniform, without the first convolution.

    Raises:
        TypeError, ValueError: an argument of another type, length or range; see also `Flow`. Nothing has changed then.

    Notes:
        What the paper leaves open, and what is done here:
        - Its boundary is ambiguous (``|W| > lambda`` in one place, "smaller than lambda" in another), and with ties
          neither prunes what was asked for. Here the count is exact, and ties go by lowest index in memory order.
        - On the momentum of pruned weights it is silent. Under `MaskedSGD(mask_momentum="zero")`, the default, it is 0,
          so reborn weights start without it, whatever the policy. Under "keep" it runs on, unless the policy is
          "zero_regrown" or "zero_all".
        - Reborn weights start at 0 (so the paper); "restore" is ours.
        - Momentum of the other weights goes on into the next phase, unless the policy is "zero_all".
        - Each phase had its own learning rate; one tenth in the re-dense phase is the paper's default, not a law. A
          scheduler of the user's runs on over all phases, and the factor multiplies what it says.
        - Weight decay and all else stay as they are (so the paper).
        - The mask is chosen once, where a sparse phase begins, from the weights at that time, in every parameter that
          `masks.plan` finds prunable: not the first convolution and no biases (so the paper), no normalisation, no
          embeddings, nothing of fewer than `min_weights` (64), nothing frozen, nothing that the optimizer does not own.
        A claim that DSD helped needs the controls: `Dense`, trained for the same total number of epochs; `LLR`, which
        goes on at a lower learning rate; ``selection="random"``, a random mask of the same sparsity; and `PruneOnce`,
        which stays sparse.
        To resume, build model, optimizer and DSD as before, then load the three state dicts: bitwise the run that never
        stopped, at any position.

    Source: Han et al. 2017, "DSD: Dense-Sparse-Dense Training for Deep Neural Networks" (arXiv 1607.04381),
        algorithm 1. For iterations that differ see its DeepSpeech 2: ``dense=20, sparse=20, redense=20, iterations=2,
        sparsity=(0.5, 0.25), lr_factors=(1, 1, 0.1, 0.1, 0.02)``.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import DSD
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> dsd = DSD(optimizer, model, dense=1, sparse=2, redense=1, sparsity=0.5)
        >>> while not dsd.finished:
        ...     print(dsd.phase.name, optimizer.sparsity().masked, dsd.phase.lr_factor)
        ...     dsd.step()  # after each epoch
        dense 0.0 1.0
        sparse 0.5 1.0
        sparse 0.5 1.0
        redense 0.0 0.1
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        dense: int,
        sparse: int | Sequence[int],
        redense: int | Sequence[int],
        sparsity: float | Sequence[float] | None = None,
        iterations: int = 1,
        lr_factors: Sequence[float] = (1, 1, 0.1),
        momentum: str = "keep",
        regrown: str = "zero",
        **options: Unpack[FlowOptions],
    ) -> None:
        check_count("iterations", iterations)
        check_length("dense", dense)
        sparse_lengths = per_iteration("sparse", sparse, iterations, check_length)
        redense_lengths = per_iteration("redense", redense, iterations, check_length)
        if sparsity is None or isinstance(options.get("distribution"), Mapping):
            sparsity = phase_sparsity(model, sparsity, options)
        sparsities = per_iteration("sparsity", sparsity, iterations, check_sparsity)
        first_factor, *factors = _lr_factors(lr_factors, iterations)
        phases = [Phase("dense", dense, lr_factor=first_factor)]
        for i in range(iterations):
            phases += [
                Phase("sparse", sparse_lengths[i], sparsities[i], factors[2 * i]),
                Phase("redense", redense_lengths[i], 0.0, factors[2 * i + 1], momentum, regrown),
            ]
        super().__init__(optimizer, model, Schedule([p for p in phases if p.length]), **options)


def _lr_factors(lr_factors: Sequence[float], iterations: int) -> list[float]:
    """One factor per phase."""
    n_phases = 1 + 2 * iterations
    expected = "3 values" if iterations == 1 else f"3 values, or one for each of {n_phases} phases"
    dense, *rest = check_lr_factors(lr_factors, expected, 3, n_phases)
    return [dense, *rest] if len(rest) == 2 * iterations else [dense, *rest * iterations]
