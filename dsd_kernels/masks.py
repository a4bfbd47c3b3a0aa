"""WHICH: from a sparsity to counts, to thresholds, to masks. Knows models and tensors, but no optimizers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, nn

from dsd_kernels.distributions import DISTRIBUTIONS, layer_counts
from dsd_kernels.layers import MIN_WEIGHTS, LayerPlan, PruningPlan, layer_plans
from dsd_kernels.ops import prune_, unpack_mask
from dsd_kernels.ops.checks import FLOAT_DTYPES
from dsd_kernels.shards import check_shard, counts_of_smallest, like, local, piece_sizes, placed_like, shares
from dsd_kernels.sparsity import check_sparsity, n_pruned
from dsd_kernels.structure import NM, UNSTRUCTURED, check_count, check_groups, parse_structure, structured_mask

__all__ = [
    "Distribution",
    "LayerPlan",
    "PlanOptions",
    "PruningPlan",
    "magnitude_masks",
    "masks_from_zeros",
    "plan",
    "random_masks",
]

Distribution = str | Mapping[str, float]


class PlanOptions(TypedDict, total=False):
    """The options of `plan`, for flows that pass them through."""

    distribution: Distribution
    exclude_first: bool
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    min_weights: int
    structure: str


def plan(
    model: nn.Module,
    sparsity: float | None = None,
    distribution: Distribution = "uniform",
    *,
    exclude_first: bool = True,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    min_weights: int = MIN_WEIGHTS,
    structure: str = UNSTRUCTURED,
    parameters: Iterable[Tensor] | None = None,
) -> PruningPlan:
    """Decide how many weights each parameter of a model loses, and which parameters are left out, and why.

    ``uniform: n_pruned_l = round(s * n_l);  erk: n_l - n_pruned_l = c * sum(dims_l), at most n_l;
    global: n_pruned_l = weights of l among the round(s * N) smallest magnitudes of all;  N = sum of n_l``

    Args:
        model: any module with initialised parameters; not changed.
        sparsity: fraction of the prunable weights to prune, in [0, 1); None where `distribution` is a dict.
        distribution: "uniform", "erk", "global", or {name: sparsity}; parameters that a dict does not name stay dense.
            Default "uniform".
        exclude_first: leave out the first Conv1d, Conv2d or Conv3d in the order of registration; a model without
            convolutions loses no layer by it. Default True.
        include: names or patterns (as in fnmatch) of parameters to prune against the rules below. Default ().
        exclude: names or patterns of parameters to leave out, whatever else says. Default ().
        min_weights: leave out tensors with fewer weights; the default is one 64-bit word of their mask, where there is
            nothing to gain and one weight is over 1.5 % of the layer. Default 64.
        structure: "unstructured", or N:M such as "2:4": of every M weights along the input dimension (dimension 1) N
            are kept. Layers without such groups are left dense; the sparsity must be 1 - N/M (or 0), the distribution
            "uniform" or a dict. Default "unstructured".
        parameters: the only ones that may be pruned, such as those of the optimizer. Default None, all.

    Returns:
        A `PruningPlan`: a row for each parameter, with its count, or the reason why it is left out.

    Raises:
        TypeError, ValueError: no sparsity; an unknown distribution; a name or pattern that matches no parameter; a
            parameter asked for by name that cannot be pruned.

    Notes:
        Left out by rule: tied parameters (one row, whose reason has the other names), frozen ones, embeddings,
        normalisation, parametrized weights, biases, all with fewer than 2 dimensions, the first convolution, small
        ones. Naming a parameter in a dict distribution includes it. No option prunes a dtype other than float32,
        float64, bfloat16 and float16. Recurrent weights and attention's in_proj_weight are matrices like others,
        and so is a bare parameter such as a position embedding: name it in `exclude`.
        Rounding: uniform rounds each layer; erk and global hit round(s * N) exactly. erk is computed in integers, the
        rest going to the layers with the largest remainders, earlier layers first. global breaks ties by the order of
        parameters, then by lowest index in memory; dtypes may differ. Deterministic. Only global looks at the weights:
        it synchronises with the device once; on a GPU it needs about 40 MiB beside them.

    Source: uniform with a dense first convolution: Han et al. 2017 (arXiv 1607.04381). erk: Erdos-Renyi kernel.

    Example:
        >>> import torch
        >>> from dsd_kernels import masks
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10))
        >>> print(masks.plan(model, 0.5))
        parameter     shape    weights  pruned  sparsity  note
        0.weight      8x1x3x3       72       -         -  first convolution
        0.bias        8              8       -         -  bias
        2.weight      10x288      2880    1440    0.5000
        2.bias        10            10       -         -  bias
        all prunable              2880    1440    0.5000
        all                       2970    1440    0.4848
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    nm = parse_structure(structure)
    named = _check_distribution(model, sparsity, distribution)
    if nm and distribution in ("erk", "global"):
        raise ValueError(f"distribution: expected uniform or a dict with structure {structure}, got {distribution!r}")
    if named and include:
        raise ValueError(f"include: expected none beside a dict distribution, which names all, got {include!r}")
    rows = layer_plans(
        model,
        exclude_first=exclude_first,
        include=(*_as_patterns("include", include), *named),
        exclude=_as_patterns("exclude", exclude),
        min_weights=min_weights,
        parameters=parameters,
        nm=nm,
    )
    if isinstance(distribution, Mapping):
        rows = [_with_named_sparsity(row, named) for row in rows]
    else:
        counts = iter(layer_counts([row for row in rows if row.prunable], sparsity, distribution))  # type: ignore[arg-type]
        rows = [replace(row, n_pruned=next(counts)) if row.prunable else row for row in rows]
    for row in rows if nm else ():
        check_count(f"distribution[{row.name!r}]" if named else "sparsity", row.n_pruned, row.n, nm)  # type: ignore[arg-type]
    return PruningPlan(tuple(rows))


def _as_patterns(argument: str, patterns: str | Sequence[str]) -> Sequence[str]:
    if isinstance(patterns, str):
        return (patterns,)
    if not isinstance(patterns, Sequence):
        raise TypeError(f"{argument}: expected names or patterns of parameters, got {patterns!r}")
    return patterns


def _check_distribution(model: nn.Module, sparsity: float | None, distribution: object) -> Mapping[str, float]:
    """The sparsities by name, if that is what the distribution is; otherwise an empty dict."""
    if not isinstance(distribution, Mapping):
        if distribution not in DISTRIBUTIONS:
            expected = f"{', '.join(DISTRIBUTIONS)} or {{name: sparsity}}"
            raise ValueError(f"distribution: expected {expected}, got {distribution!r}")
        check_sparsity("sparsity", sparsity)
        return {}
    if sparsity is not None:
        raise ValueError(f"sparsity: expected None beside a dict of sparsities, got {sparsity!r}")
    names = dict(model.named_parameters(remove_duplicate=False))
    for name, value in distribution.items():
        if name not in names:
            raise ValueError(f"distribution: expected names of parameters, the model has no {name!r}")
        check_sparsity(f"distribution[{name!r}]", value)
    return distribution


def _with_named_sparsity(row: LayerPlan, sparsities: Mapping[str, float]) -> LayerPlan:
    own = [name for name in (row.name, *row.aliases) if name in sparsities]
    if not own:
        return replace(row, prunable=False, reason="not named in distribution" if row.prunable else row.reason)
    if len(own) > 1 or not row.prunable:
        problem = f"{own[1]} is the same parameter" if len(own) > 1 else f"it is {row.reason}"
        raise ValueError(f"distribution: expected each prunable parameter once, got {own[0]!r}, but {problem}")
    return replace(row, n_pruned=n_pruned(sparsities[own[0]], row.n))


def magnitude_masks(
    tensors: Sequence[Tensor],
    sparsity: float | Sequence[float],
    distribution: str = "uniform",
    *,
    structure: str = UNSTRUCTURED,
) -> list[Tensor]:
    """Masks that prune the smallest magnitudes, without pruning.

    ``uniform: mask_i = all but the round(s_i * n_i) smallest |t_i|;  global: the same of all tensors together``

    Args:
        tensors: float32, float64, bfloat16 or float16, of any shape, strides and device; not changed.
        sparsity: fraction of weights to prune, in [0, 1); for "uniform" also one per tensor.
        distribution: "uniform" or "global". Default "uniform".
        structure: "unstructured", or N:M such as "2:4": the smallest M - N of every M weights along dimension 1; the
            sparsity must be 1 - N/M (or 0), the distribution "uniform". Default "unstructured".

    Returns:
        One bool mask per tensor, True = keep, of its shape, device and strides (dense ones where a tensor has gaps).

    Raises:
        TypeError, ValueError: no list of tensors of these dtypes; no sparsity; an unknown distribution; a tensor that
            has no groups of M along dimension 1, or another sparsity than the structure's.

    Notes:
        Exact and deterministic. Ties go by lowest index in memory order, for "global" by the order of tensors first.
        NaN orders above Inf, so it is kept. No host synchronisation. Memory: a copy of one tensor at a time.
        DTensors: the masks are DTensors, and those of one process; every rank calls this (see docs/distributed.md).

    Source: Han et al. 2017 (arXiv 1607.04381), algorithm 1.

    Example:
        >>> import torch
        >>> from dsd_kernels.masks import magnitude_masks
        >>> magnitude_masks([torch.tensor([0.1, -3.0]), torch.tensor([0.2, 2.0])], 0.5)
        [tensor([False,  True]), tensor([False,  True])]
    """
    _check_tensors(tensors, FLOAT_DTYPES)
    nm = parse_structure(structure)
    if distribution not in ("uniform", "global"):
        raise ValueError(f"distribution: expected uniform or global, got {distribution!r}")
    if nm:
        if distribution != "uniform":
            raise ValueError(f"distribution: expected uniform with structure {structure}, got {distribution!r}")
        return _structured_masks(tensors, tensors, sparsity, nm)
    k: Sequence[int] | Tensor
    if distribution == "global":
        check_sparsity("sparsity", sparsity)
        total = n_pruned(sparsity, sum(t.numel() for t in tensors))  # type: ignore[arg-type]
        k = counts_of_smallest(tensors, total) if tensors else []
    else:
        k = [n_pruned(s, t.numel()) for s, t in zip(_per_tensor(sparsity, tensors), tensors, strict=True)]
    own_k = [k[i : i + 1] if share is None else share[None] for i, share in enumerate(shares(tensors, tensors, k))]
    return [like(t, _mask_of_smallest(local(t), own)) for t, own in zip(tensors, own_k, strict=True)]


def _structured_masks(
    tensors: Sequence[Tensor], scores: Iterable[Tensor], sparsity: float | Sequence[float], nm: NM
) -> list[Tensor]:
    """Masks of the tensors by the magnitudes of scores, which are made only once all is checked."""
    counts = [n_pruned(s, t.numel()) for s, t in zip(_per_tensor(sparsity, tensors), tensors, strict=True)]
    for i, (t, k) in enumerate(zip(tensors, counts, strict=True)):
        check_groups(f"tensors[{i}]", t.shape, nm, partial(piece_sizes, t))
        check_count("sparsity", k, t.numel(), nm)
    masks = []
    for t, s, k in zip(tensors, scores, counts, strict=True):
        mask = structured_mask(placed_like(t, s), k, nm)
        masks.append(like(t, torch.empty_like(local(t), dtype=torch.bool, requires_grad=False).copy_(mask)))
    return masks


def _mask_of_smallest(tensor: Tensor, k: Sequence[int] | Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return unpack_mask(prune_([copy], k=k.to(copy.device) if isinstance(k, Tensor) else k), [copy])[0]


def random_masks(
    tensors: Sequence[Tensor],
    sparsity: float | Sequence[float],
    generator: torch.Generator | None = None,
    *,
    structure: str = UNSTRUCTURED,
) -> list[Tensor]:
    """Masks that prune weights at random: the control for every claim about magnitude.

    ``mask_i = all but round(s_i * n_i) weights, each choice of them equally likely``

    Args:
        tensors: of any shape, strides, dtype and device; only these are looked at, not the values.
        sparsity: fraction of weights to prune, in [0, 1); or one per tensor.
        generator: source of randomness, on any device. Default None, torch's own on the CPU.
        structure: "unstructured", or N:M such as "2:4": any M - N of every M weights along dimension 1, as in
            `magnitude_masks`. Default "unstructured".

    Returns:
        One bool mask per tensor, True = keep, of its shape, device and strides (dense ones where a tensor has gaps).

    Raises:
        TypeError, ValueError: no list of tensors; no sparsity; what does not fit the structure.

    Notes:
        The counts are exact. A generator in the same state gives the same masks whatever the dtype, the memory layout
        and the device of the tensors; without structure, that of a higher sparsity prunes what that of a lower one
        does, and more. Memory: 9 bytes a weight of one tensor at a time, on the generator's device. DTensors: every
        rank draws the whole mask and keeps its part, so give all ranks generators in the same state.

    Source: the control experiment of Han et al. 2017 (arXiv 1607.04381).

    Example:
        >>> import torch
        >>> from dsd_kernels.masks import random_masks
        >>> [mask] = random_masks([torch.ones(100, 3)], 0.3, torch.Generator().manual_seed(0))
        >>> int(mask.sum())
        210
    """
    _check_tensors(tensors)
    sparsities = _per_tensor(sparsity, tensors)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {generator!r}")
    device = torch.device("cpu") if generator is None else generator.device
    if nm := parse_structure(structure):
        rand = partial(torch.rand, generator=generator, device=device, dtype=torch.float64)
        return _structured_masks(tensors, (rand(tensor.shape) for tensor in tensors), sparsities, nm)
    masks = []
    for tensor, s in zip(tensors, sparsities, strict=True):
        n = tensor.numel()
        mask = torch.ones(n, dtype=torch.bool, device=device)
        mask[torch.randperm(n, generator=generator, device=device)[: n_pruned(s, n)]] = False
        own = placed_like(tensor, mask.view(tensor.shape))
        masks.append(like(tensor, torch.empty_like(local(tensor), dtype=torch.bool).copy_(own)))
    return masks


def masks_from_zeros(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Masks of weights that somebody else has pruned: what is 0 was pruned.

    ``mask = (t != 0)``

    Args:
        tensors: of any shape, strides, dtype and device.

    Returns:
        One bool mask per tensor, True = keep, of its shape, device and strides (dense ones where a tensor has gaps).

    Raises:
        TypeError: no list of tensors.

    Notes:
        A weight that was kept and happens to be 0 is lost: it cannot be told from a pruned one, and the next training
        step would have moved it. Use it once, to import a pruned model without masks, and keep the masks from then on.
        NaN is kept; -0 is a zero.

    Source: none.

    Example:
        >>> import torch
        >>> from dsd_kernels.masks import masks_from_zeros
        >>> masks_from_zeros([torch.tensor([0.5, 0.0, -0.0])])
        [tensor([ True, False, False])]
    """
    _check_tensors(tensors)
    return [tensor.detach() != 0 for tensor in tensors]


def _check_tensors(tensors: object, dtypes: Sequence[torch.dtype] | None = None) -> None:
    if not isinstance(tensors, Sequence):
        raise TypeError(f"tensors: expected a list of tensors, got {type(tensors).__name__}")
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors[{i}]: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise TypeError(f"tensors[{i}]: expected a strided tensor, got layout {tensor.layout}")
        if dtypes and tensor.dtype not in dtypes:
            raise TypeError(f"tensors[{i}]: expected dtype float32, float64, bfloat16 or float16, got {tensor.dtype}")
        check_shard(f"tensors[{i}]", tensor)


def _per_tensor(sparsity: float | Sequence[float], tensors: Sequence[Tensor]) -> list[float]:
    if isinstance(sparsity, Sequence) and not isinstance(sparsity, str):
        if len(sparsity) != len(tensors):
            raise ValueError(f"sparsity: expected {len(tensors)} values, one per tensor, got {len(sparsity)}")
        for i, value in enumerate(sparsity):
            check_sparsity(f"sparsity[{i}]", value)
        return list(sparsity)
    check_sparsity("sparsity", sparsity)
    return [sparsity] * len(tensors)
