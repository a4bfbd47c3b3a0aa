"""What a sparsity is, and how many weights it prunes: the one check and the one rounding, for every module."""

from numbers import Real


def check_sparsity(name: str, value: object) -> None:
    """Raise unless the value is a sparsity, a number in [0, 1).

    ``0 <= value < 1``.

    Args:
        name: what to call the value in the error.
        value: the fraction of weights to prune; any real number, but no bool.

    Raises:
        TypeError: not a real number, or a bool.
        ValueError: outside [0, 1), or NaN.

    Example:
        >>> from dsd_kernels.sparsity import check_sparsity
        >>> check_sparsity("sparsity", 1.5)
        Traceback (most recent call last):
        ValueError: sparsity: expected a number in [0, 1), got 1.5
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number in [0, 1), got {value!r}")
    if value < 0 or not value < 1:  # the second is true of NaN
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")


def n_pruned(sparsity: float, n: int) -> int:
    """How many of n weights a sparsity prunes.

    ``round(sparsity * n)``.

    Args:
        sparsity: fraction of zeros, in [0, 1); not checked again (see `check_sparsity`).
        n: number of weights.

    Returns:
        An int in [0, n].

    Notes:
        Rounding: Python's, of the product in double precision, halves to the even neighbour.

    Example:
        >>> from dsd_kernels.sparsity import n_pruned
        >>> n_pruned(0.3, 8), n_pruned(0.5, 5), n_pruned(0.5, 7)
        (2, 2, 4)
    """
    return round(float(sparsity) * n)
