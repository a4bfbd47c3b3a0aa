"""What paired differences show: their mean, its confidence interval, and whether it can be told from zero."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
ROUNDING = 1e-12  # differences that differ by less, relative to the values, are the same


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and what it shows.

    Attributes:
        mean, spread: mean and standard deviation (of n - 1) of the differences.
        low, high: confidence interval of the mean, of this comparison alone; None where there is none.
        p: two-sided, of the paired t test; None where there is none.
        adjusted_p: after Holm's correction over all comparisons; None where p is.
        note: why there is no p; "" where there is.
    """

    mean: float
    spread: float
    low: float | None
    high: float | None
    p: float | None
    adjusted_p: float | None = None
    note: str = ""

    @property
    def is_distinguishable(self) -> bool:
        """Whether the mean can be told from zero, after the correction."""
        return self.adjusted_p is not None and self.adjusted_p < 1 - CONFIDENCE

    @property
    def interval_excludes_zero(self) -> bool:
        """Whether the interval, which knows of no other comparison, leaves zero out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of n - 1); the latter NaN for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """The difference of values from a reference, in pairs.

    ``d_i = values_i - reference_i;  mean(d) +- t(0.975; n - 1) * s(d) / sqrt(n)``

    Args:
        values, reference: one for each seed, in the same order.

    Returns:
        A `Difference` that is not corrected yet (see `holm`).

    Notes:
        Where all differences are the same, their spread is 0 and the t test says nothing, so there is no p; it is not
        taken as proof. NaN, of a training that diverged, leaves nothing to compare.

    Source: paired t test (Student 1908).

    Example:
        >>> from dsd_kernels.study.statistics import difference
        >>> found = difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
        >>> f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}], p {found.p:.3f}"
        '2.000 [-0.484, 4.484], p 0.074'
    """
    from scipy import stats

    pairs = [value - other for value, other in zip(values, reference, strict=True)]
    n, n_lost = len(pairs), sum(not math.isfinite(pair) for pair in pairs)
    if n_lost:
        return Difference(math.nan, math.nan, None, None, None, note=f"training diverged in {n_lost} of {n} seeds")
    mean, spread = mean_and_spread(pairs)
    if n < 2:
        return Difference(mean, spread, None, None, None, note="one seed shows nothing")
    if spread == 0 or max(pairs) - min(pairs) <= ROUNDING * max(map(abs, (*values, *reference))):
        return Difference(mean, 0.0, mean, mean, None, note="the same difference in every seed, so no t test")
    error = spread / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Difference(mean, spread, mean - half, mean + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, step down: the chance of even one false discovery stays below the level.

    ``sorted: p_(i) -> max over j <= i of min(1, (m - j + 1) * p_(j))``

    Args:
        p_values: of all comparisons made.

    Returns:
        One for each, in the same order.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Example:
        >>> from dsd_kernels.study.statistics import holm
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
