"""N:M sparsity: N of every M weights along the input dimension are kept, as sparse tensor cores want it for 2:4."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

UNSTRUCTURED = "unstructured"
INPUT_DIM = 1  # of weights of linear, recurrent and attention layers (out, in) and of convolutions (out, in, ...)


class NM(NamedTuple):
    """How many weights of a group are kept, and how many are in it."""

    kept: int
    group: int

    @property
    def n_pruned(self) -> int:
        """How many weights of a group are pruned."""
        return self.group - self.kept


def parse_structure(structure: object) -> NM | None:
    """What "N:M" says; None for "unstructured".

    Raises:
        ValueError: neither of the two, or N:M without 0 < N < M.

    Example:
        >>> from dsd_kernels.structure import parse_structure
        >>> parse_structure("2:4")
        NM(kept=2, group=4)
    """
    if structure == UNSTRUCTURED:
        return None
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", structure) if isinstance(structure, str) else None
    if found is None or not 0 < int(found[1]) < int(found[2]):
        raise ValueError(f"structure: expected unstructured, or N:M with 0 < N < M such as 2:4, got {structure!r}")
    return NM(int(found[1]), int(found[2]))


def why_no_groups(shape: Sequence[int], nm: NM) -> str:
    """Why a weight of this shape has no groups of M along its input dimension; empty if it has."""
    if len(shape) <= INPUT_DIM:
        return f"shape {tuple(shape)} has no input dimension"
    if shape[INPUT_DIM] % nm.group:
        return f"input dimension of {shape[INPUT_DIM]} is not a multiple of {nm.group}"
    return ""


def check_groups(name: str, shape: Sequence[int], nm: NM, pieces: Callable[[int], Iterable[int]]) -> None:
    """Raise unless the weight can be cut into groups, and each of them lies whole on a rank.

    Args:
        name: of the weight.
        shape: of the whole weight.
        nm: the structure.
        pieces: the sizes that a dimension has on the ranks, the same on every rank.
    """
    if why := why_no_groups(shape, nm):
        raise ValueError(f"structure: expected groups of {nm.group} along the input dimension of {name}, but its {why}")
    for size in sorted(pieces(INPUT_DIM)):
        if size % nm.group:
            raise ValueError(
                f"structure: expected groups of {nm.group} along the input dimension of {name}, but that of a local "
                f"shard, {size}, is not a multiple of {nm.group}"
            )


def check_count(name: str, k: int, n: int, nm: NM) -> None:
    """Raise unless k pruned weights of n are what the structure prunes; none at all will do too."""
    expected = n // nm.group * nm.n_pruned
    if k not in (0, expected):
        share = nm.n_pruned / nm.group
        raise ValueError(
            f"{name}: expected 0 or {share:g} with structure {nm.kept}:{nm.group}, which prunes {expected} of {n} "
            f"weights, got one that prunes {k}"
        )


def structured_mask(weight: Tensor, k: int, nm: NM) -> Tensor:
    """A bool mask that prunes the smallest magnitudes of every group, k in all; True = keep.

    ``order = stable argsort(|weight|) in the group;  mask[order[:M - N]] = False``

    Args:
        weight: of any float dtype, strides and device; a shape that `check_groups` accepts.
        k: as `check_count` accepts it.
        nm: the structure.

    Returns:
        Of the weight's shape, device and strides (dense ones where it has gaps).

    Notes:
        Ties go by lowest index in the group; NaN orders above Inf, so it is kept. No host synchronisation. Memory:
        a sort's, some 20 bytes a weight.
    """
    mask = torch.ones_like(weight, dtype=torch.bool, requires_grad=False)
    if k:
        order = _grouped(weight.detach().abs(), nm).argsort(dim=-1, stable=True)
        _grouped(mask, nm).scatter_(-1, order[..., : nm.n_pruned], False)
    return mask


def _grouped(tensor: Tensor, nm: NM) -> Tensor:
    """A view whose last dimension is a group."""
    return tensor.movedim(INPUT_DIM, -1).unflatten(-1, (-1, nm.group))
