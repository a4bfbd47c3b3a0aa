"""How many weights each layer loses, out of one sparsity: uniform, erk, global."""

from collections.abc import Sequence
from math import prod

from dsd_kernels.layers import LayerPlan
from dsd_kernels.shards import check_shard, counts_of_smallest
from dsd_kernels.sparsity import n_pruned

DISTRIBUTIONS = ("uniform", "erk", "global")


def layer_counts(rows: Sequence[LayerPlan], sparsity: float, distribution: str) -> list[int]:
    if distribution == "uniform":
        return [n_pruned(sparsity, row.n) for row in rows]
    total = n_pruned(sparsity, sum(row.n for row in rows))
    if distribution == "erk":
        return _erk_counts([row.shape for row in rows], total)
    for row in rows:
        check_shard(row.name, row.parameter)
    return counts_of_smallest([row.parameter for row in rows], total).tolist() if total else [0] * len(rows)


def _erk_counts(shapes: Sequence[Sequence[int]], total: int) -> list[int]:
    """n_pruned of each layer: kept weights in proportion to sum(dims), at most all, in exact integer arithmetic."""
    n = [prod(shape) for shape in shapes]
    score = [sum(shape) or 1 for shape in shapes]
    kept = list(n)
    open_layers = set(range(len(n)))
    budget = sum(n) - total
    while open_layers:
        scores = sum(score[i] for i in open_layers)
        full = {i for i in open_layers if budget * score[i] >= n[i] * scores}
        if not full:
            break
        open_layers -= full
        budget -= sum(n[i] for i in full)
    remainder = {}
    for i in sorted(open_layers):
        kept[i], remainder[i] = divmod(budget * score[i], scores)
    n_left = budget - sum(kept[i] for i in open_layers)
    for i in sorted(remainder, key=remainder.__getitem__, reverse=True)[:n_left]:  # sorted is stable
        kept[i] += 1
    return [n_i - kept_i for n_i, kept_i in zip(n, kept, strict=True)]
