"""The numbers of a study: each arm's mean and spread, and its paired differences to the controls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dsd_kernels.study.arms import BASELINE, LLR
from dsd_kernels.study.results import Result
from dsd_kernels.study.settings import Settings
from dsd_kernels.study.statistics import Difference, difference, holm, mean_and_spread
from dsd_kernels.tasks import Task

REFERENCES = (BASELINE, LLR)


@dataclass(frozen=True)
class Metric:
    """A quantity measured on the test data after the last epoch.

    Attributes:
        name: "accuracy" or "loss".
        unit: of its values and differences.
        key: in the records.
        scale: from the record's value to the unit.
        digits: decimals to show.
        higher_is_better: which way is up.
    """

    name: str
    unit: str
    key: str
    scale: float
    digits: int
    higher_is_better: bool

    def word(self, amount: float) -> str:
        """Better or worse, for a difference."""
        if amount == 0:
            return "the same"
        return "better" if (amount > 0) == self.higher_is_better else "worse"


def metrics(task: Task) -> tuple[Metric, Metric]:
    """The one that the task is judged by, and the other."""
    accuracy = Metric("accuracy", "points", "test_accuracy", 100.0, 2, higher_is_better=True)
    loss = Metric("loss", task.loss_unit, "test_loss", 1.0, 4, higher_is_better=False)
    return (accuracy, loss) if task.metric == "accuracy" else (loss, accuracy)


@dataclass(frozen=True)
class ArmSummary:
    """One arm over all seeds: its values in the order of seeds, and the sparsity that it ended with."""

    name: str
    values: tuple[float, ...]
    mean: float
    spread: float
    sparsity: float


@dataclass(frozen=True)
class Summary:
    """One metric of a study.

    Attributes:
        arms: in the order of the study.
        differences: by reference, then by arm; p-values are corrected within each reference.
    """

    metric: Metric
    arms: tuple[ArmSummary, ...]
    differences: dict[str, dict[str, Difference]]


def summarise(settings: Settings, metric: Metric, results: Mapping[tuple[str, int], Result]) -> Summary:
    """The numbers of a finished study, for one metric."""
    arms = tuple(_arm(name, settings, metric, results) for name in settings.arms)
    values = {arm.name: arm.values for arm in arms}
    differences = {}
    for reference in REFERENCES:
        if reference in values:
            others = [name for name in values if name not in REFERENCES[: REFERENCES.index(reference) + 1]]
            found = {name: difference(values[name], values[reference]) for name in others}
            differences[reference] = _corrected(found)
    return Summary(metric, arms, differences)


def _arm(name: str, settings: Settings, metric: Metric, results: Mapping[tuple[str, int], Result]) -> ArmSummary:
    last = [results[name, seed]["records"][-1] for seed in range(settings.n_seeds)]
    values = tuple(math.nan if record[metric.key] is None else record[metric.key] * metric.scale for record in last)
    return ArmSummary(name, values, *mean_and_spread(values), sparsity=last[0]["sparsity_actual"])


def _corrected(found: dict[str, Difference]) -> dict[str, Difference]:
    tested = {name: one.p for name, one in found.items() if one.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {name: replace(one, adjusted_p=adjusted.get(name)) for name, one in found.items()}


def verdict(name: str, reference: str, found: Difference, metric: Metric, n_tested: int) -> str:
    """One sentence on whether an arm differs from a reference."""
    if found.p is None or found.adjusted_p is None:
        return f"`{name}`: no statement about its difference from `{reference}`: {found.note}."
    amount = f"{abs(found.mean):.{metric.digits}f} {metric.unit} {metric.word(found.mean)} than `{reference}`"
    corrected = f"p = {short_p(found.adjusted_p)} after Holm's correction"
    if found.is_distinguishable:
        return f"`{name}` is {amount}: distinguishable from zero ({corrected})."
    sentence = f"`{name}` is {amount}: not distinguishable from zero ({corrected})"
    if found.interval_excludes_zero:
        sentence += f"; its own interval leaves zero out, which among {n_tested} comparisons is not enough"
    return f"{sentence}."


def headline(summary: Summary, reference: str) -> str:
    """How many arms can be told from a reference, and which way."""
    found = summary.differences[reference]
    told = {name: one for name, one in found.items() if one.is_distinguishable}
    if not told:
        return f"No arm can be told from `{reference}` in test {summary.metric.name}: a gain or loss is not shown."
    parts = []
    for word in ("better", "worse"):
        names = [f"`{name}`" for name, one in told.items() if summary.metric.word(one.mean) == word]
        parts.append(f"{', '.join(names) or 'none'} {word}")
    rest = len(found) - len(told)
    return (
        f"In test {summary.metric.name}, told apart from `{reference}`: {'; '.join(parts)}. "
        f"{rest} of {len(found)} not distinguishable."
    )


def short_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}".replace("e-0", "e-")
