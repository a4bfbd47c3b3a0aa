"""Controls: what a method must be held against before one may say that it helped."""

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from dsd_kernels.flows.arguments import FlowOptions, check_lengths, check_lr_factors
from dsd_kernels.flows.base import Flow
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase, Schedule, check_lr_factor


class Dense(Flow):
    """The equal-epoch baseline: the lengths and learning rates of another flow, without a mask.

    ``W <- SGD(W), learning rate times lr_factors[i], for lengths[i] units``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module that is trained.
        lengths: one per phase, in units.
        lr_factors: one per phase. Default None, 1 everywhere.
        options: unit, as in `Flow`. The others are accepted, so that the arms of a study can share them, and checked.

    Raises:
        TypeError, ValueError: an argument of another type, length or range; see also `Flow`. Nothing has changed then.

    Notes:
        Whoever trains longer does better: a method is to be compared with this, for the same number of units, at the
        same learning rates. Of another flow: ``lengths=[phase.length for phase in flow.phases]``, its factors likewise.

    Source: the baseline of DeepSpeech, trained for the same number of epochs, in Han et al. 2017 (arXiv 1607.04381).

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import Dense
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1)
        >>> flow = Dense(optimizer, model, lengths=(1, 2, 1), lr_factors=(1, 1, 0.1))
        >>> flow.schedule.length, {phase.sparsity for phase in flow.phases}
        (4, {0.0})
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        lengths: Sequence[int],
        lr_factors: Sequence[float] | None = None,
        **options: Unpack[FlowOptions],
    ) -> None:
        if not isinstance(lengths, Sequence) or isinstance(lengths, str):
            raise TypeError(f"lengths: expected a sequence of integers, got {lengths!r}")
        check_lengths(**{f"lengths[{i}]": length for i, length in enumerate(lengths)})
        n = len(lengths)
        factors = [1.0] * n if lr_factors is None else check_lr_factors(lr_factors, f"{n} values, one per length", n)
        phases = [Phase("dense", length, lr_factor=f) for length, f in zip(lengths, factors, strict=True)]
        super().__init__(optimizer, model, Schedule(phases), **options)


class LLR(Flow):
    """The control "LLR": conventional training that goes on at a lower learning rate, without a mask.

    ``W <- SGD(W) for `dense` units, then for `low` units with the learning rate times lr_factor``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module that is trained.
        dense: length of the training before, in units.
        low: length of the training at the lower learning rate.
        lr_factor: how much lower. Default 0.1.
        options: unit, as in `Flow`. The others are accepted, so that the arms of a study can share them, and checked.

    Raises:
        TypeError, ValueError: an argument of another type, length or range; see also `Flow`. Nothing has changed then.

    Notes:
        A re-dense phase lowers the learning rate, which helps by itself: this tells the one from the other. For a `DSD`
        give `low` the lengths of its sparse and re-dense phases together.

    Source: the control of the same name in Han et al. 2017 (arXiv 1607.04381).

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import LLR
        >>> model = torch.nn.Linear(16, 16)
        >>> flow = LLR(MaskedSGD(model.parameters(), lr=0.1), model, dense=2, low=4)
        >>> [(phase.name, phase.length, phase.lr_factor) for phase in flow.phases]
        [('dense', 2, 1.0), ('low', 4, 0.1)]
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        dense: int,
        low: int,
        lr_factor: float = 0.1,
        **options: Unpack[FlowOptions],
    ) -> None:
        check_lengths(dense=dense, low=low)
        check_lr_factor("lr_factor", lr_factor)
        phases = [Phase("dense", dense), Phase("low", low, lr_factor=lr_factor)]
        super().__init__(optimizer, model, Schedule(phases), **options)
