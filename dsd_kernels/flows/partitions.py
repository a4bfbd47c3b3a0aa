"""The layers of a model cut into partitions, one of which may be dense while the others are sparse."""

from collections.abc import Collection, Sequence
from numbers import Integral

from dsd_kernels.flows.arguments import check_count
from dsd_kernels.layers import PruningPlan, matches

Partitions = tuple[tuple[str, ...], ...]


def n_partitions(partitions: object) -> int:
    """How many partitions are asked for, by their number or by the names of each.

    Raises:
        TypeError, ValueError: neither, or none.
    """
    if isinstance(partitions, Sequence) and not isinstance(partitions, str):
        for i, names in enumerate(partitions):
            if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"partitions[{i}]: expected names or patterns of parameters, got {names!r}")
        n: object = len(partitions)
    elif isinstance(partitions, Integral):
        n = partitions
    else:
        raise TypeError(f"partitions: expected a number, or a list of the names of each partition, got {partitions!r}")
    check_count("partitions", n)
    return int(n)  # type: ignore[call-overload]


def cut(plan: PruningPlan, partitions: int | Sequence[Sequence[str]]) -> Partitions:
    """The names of the prunable parameters in each partition.

    Args:
        plan: says which parameters are prunable, and their order.
        partitions: how many, each of as many parameters as the others, give or take one, that follow one another; or
            the names or patterns (as in fnmatch) of each.

    Raises:
        TypeError, ValueError: fewer parameters than partitions; a parameter in none or in two of them; a partition that
            is empty.
    """
    names = [row.name for row in plan.prunable]
    if isinstance(partitions, Sequence):
        return _by_name(names, partitions)
    if partitions > len(names):
        raise ValueError(f"partitions: expected at most {len(names)}, one per prunable parameter, got {partitions}")
    bounds = [i * len(names) // partitions for i in range(partitions + 1)]
    return tuple(tuple(names[bounds[i] : bounds[i + 1]]) for i in range(partitions))


def _by_name(names: Sequence[str], partitions: Sequence[Sequence[str]]) -> Partitions:
    found = tuple(tuple(name for name in names if _is_in(name, patterns)) for patterns in partitions)
    for i, (own, patterns) in enumerate(zip(found, partitions, strict=True)):
        if not own:
            raise ValueError(f"partitions[{i}]: expected names or patterns of prunable parameters, got {patterns!r}")
    for name in names:
        if (n := sum(name in own for own in found)) != 1:
            raise ValueError(f"partitions: expected every prunable parameter in one of them, {name} is in {n}")
    return found


def _is_in(name: str, patterns: Sequence[str]) -> bool:
    return any(matches(pattern, name) for pattern in ([patterns] if isinstance(patterns, str) else patterns))
