"""Whether the promises about masks hold: the actual sparsity of parameters, and the check behind `verify()`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsd_kernels.text_table import format_table


@dataclass(frozen=True)
class SparsityReport:
    """The fraction of pruned weights, counted from the masks.

    Attributes:
        overall: over all weights of the optimizer, masked or not.
        masked: over the weights of masked parameters; 0 without masks.
        per_parameter: of each parameter; 0 for one without a mask.
        names: the name of each parameter, for reading.
    """

    overall: float
    masked: float
    per_parameter: dict[Tensor, float]
    names: dict[Tensor, str]

    def __str__(self) -> str:
        rows = [(self.names[p], str(tuple(p.shape)), f"{s:.4f}") for p, s in self.per_parameter.items()]
        rows += [("masked parameters", "", f"{self.masked:.4f}"), ("all parameters", "", f"{self.overall:.4f}")]
        return format_table([("parameter", "shape", "sparsity"), *rows], numbers=(2,))


@dataclass(frozen=True)
class MaskCheck:
    """What `verify()` found for one masked parameter."""

    name: str
    n: int
    n_pruned: int
    n_pruned_nonzero: int
    n_momentum_nonzero: int
    n_nonfinite: int
    error: str


@dataclass(frozen=True)
class Verification:
    """The result of `verify()`: one row per masked parameter; `str()` is a table."""

    rows: tuple[MaskCheck, ...]

    @property
    def errors(self) -> list[str]:
        return [f"{row.name}: {row.error}" for row in self.rows if row.error]

    def __str__(self) -> str:
        header = ("parameter", "weights", "pruned", "sparsity", "not finite", "verdict")
        rows = [
            (
                row.name,
                str(row.n),
                str(row.n_pruned),
                f"{row.n_pruned / max(row.n, 1):.4f}",
                str(row.n_nonfinite),
                row.error or "ok",
            )
            for row in self.rows
        ]
        return format_table([header, *rows], numbers=(1, 2, 3, 4)) if rows else "no parameter has a mask"


def sparsity_report(names: Mapping[Tensor, str], n_pruned: Mapping[Tensor, int]) -> SparsityReport:
    """The report from the counts of the masked parameters, per parameter and overall."""
    n_all = sum(p.numel() for p in names)
    n_masked = sum(p.numel() for p in n_pruned)
    return SparsityReport(
        overall=sum(n_pruned.values()) / max(n_all, 1),
        masked=sum(n_pruned.values()) / max(n_masked, 1),
        per_parameter={p: n_pruned.get(p, 0) / max(p.numel(), 1) for p in names},
        names=dict(names),
    )


def count_faults(
    param: Tensor,
    mask: Tensor,
    momentum_buffer: Tensor | None,
    master_weight: Tensor | None,
    padding_is_zero: bool,
) -> list[int]:
    """What `check_counts` judges, of a parameter or a shard of it: the counts of its shards add up.

    Pruned weights; those that are not +0.0, have momentum, or a master that is not +0.0, where these are given; weights
    that are not finite; whether the padding is damaged.
    """
    pruned = ~mask
    return [
        int(pruned.sum()),
        _count_not_positive_zero(param, pruned),
        0 if momentum_buffer is None else int(((momentum_buffer != 0) & pruned).sum()),
        0 if master_weight is None else _count_not_positive_zero(master_weight, pruned),
        int((~torch.isfinite(param)).sum()),
        int(not padding_is_zero),
    ]


def check_counts(name: str, n: int, counts: Sequence[int]) -> MaskCheck:
    """The verdict on one parameter: every pruned weight is exactly +0.0, and so are its momentum and master."""
    n_pruned, n_nonzero, n_momentum, n_master, n_nonfinite, n_damaged = counts
    found = []
    if n_nonzero:
        found.append(f"{n_nonzero} pruned weights are not +0.0")
    if n_momentum:
        found.append(f"{n_momentum} pruned weights have momentum")
    if n_master:
        found.append(f"{n_master} pruned weights have master weights that are not +0.0")
    if n_damaged:
        found.append("the mask's padding bits are not zero")
    return MaskCheck(
        name=name,
        n=n,
        n_pruned=n_pruned,
        n_pruned_nonzero=n_nonzero,
        n_momentum_nonzero=n_momentum,
        n_nonfinite=n_nonfinite,
        error=", ".join(found),
    )


def _count_not_positive_zero(tensor: Tensor, where: Tensor) -> int:
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    wrong = (parts != 0) | torch.signbit(parts)
    return int(((wrong.any(-1) if tensor.is_complex() else wrong) & where).sum())
