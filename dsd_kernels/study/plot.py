"""Pictures of a study: paired differences with their intervals, and what every arm did over the epochs."""

import math
from collections.abc import Mapping
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsd_kernels.study.arms import BASELINE
from dsd_kernels.study.results import Result
from dsd_kernels.study.settings import Settings
from dsd_kernels.study.summary import Summary
from dsd_kernels.tasks import Task

BETTER, WORSE, UNTOLD = "#1a7f37", "#b03a0b", "#6e7781"
REFERENCE, SHADE = "#7db3f0", "#e8e8ec"
COLUMNS = 4


def png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def differences_picture(summary: Summary, title: str) -> bytes:
    """One panel for each control: the mean difference of every arm, its interval, and each seed as a dot."""
    n = len(summary.differences)
    height = 1.6 + 0.42 * max(len(found) for found in summary.differences.values())
    figure = Figure(figsize=(5.2 * n + 0.8, height), dpi=110, layout="constrained")
    way = "higher" if summary.metric.higher_is_better else "lower"
    figure.suptitle(f"{title}: test {summary.metric.name} ({way} is better)", fontsize=11)
    panels = figure.subplots(1, n, squeeze=False)[0]
    for axes, reference in zip(panels, summary.differences, strict=True):
        _differences(axes, summary, reference)
    return png(figure)


def _differences(axes: Axes, summary: Summary, reference: str) -> None:
    values = {arm.name: arm.values for arm in summary.arms}
    found = summary.differences[reference]
    for row, (name, one) in enumerate(found.items()):
        word = summary.metric.word(one.mean) if one.is_distinguishable else ""
        color = {"better": BETTER, "worse": WORSE}.get(word, UNTOLD)
        seeds = [v - r for v, r in zip(values[name], values[reference], strict=True) if math.isfinite(v - r)]
        axes.plot(seeds, [row + 0.25] * len(seeds), "o", color=color, alpha=0.35, markersize=4, markeredgewidth=0)
        if math.isfinite(one.mean):
            ends = [one.mean if end is None else end for end in (one.low, one.high)]
            axes.plot(ends, [row, row], color=color, linewidth=3)
            axes.plot([one.mean], [row], "o", color=color, markersize=7)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel(f"minus {reference}, {summary.metric.unit}")
    axes.set_title("mean, 95 % interval, each seed; green: better, red: worse, grey: neither is shown", fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def arms_picture(settings: Settings, task: Task, results: Mapping[tuple[str, int], Result]) -> bytes:
    """A panel for every arm: the mean test loss over the epochs beside the baseline's, and its sparsity, shaded."""
    n_rows = -(-len(settings.arms) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.1 * n_rows + 0.6), dpi=100, layout="constrained")
    figure.suptitle(
        f"Mean test loss ({task.loss_unit}); blue: baseline; grey: share pruned of the layers with masks, 0 to 1",
        fontsize=11,
    )
    panels = figure.subplots(n_rows, COLUMNS, squeeze=False, sharex=True, sharey=True).flatten()
    losses = {name: _mean_losses(name, settings, results) for name in settings.arms}
    for axes, name in zip(panels, settings.arms, strict=False):
        _curves(axes, losses, name, [record["sparsity_actual"] for record in results[name, 0]["records"]])
    for axes in panels[len(settings.arms) :]:
        axes.axis("off")
    if task.loss_unit == "nats" and all(value > 0 for values in losses.values() for value in values):
        panels[0].set_yscale("log")
    return png(figure)


def _mean_losses(name: str, settings: Settings, results: Mapping[tuple[str, int], Result]) -> list[float]:
    runs = [results[name, seed]["records"] for seed in range(settings.n_seeds)]
    epochs = zip(*([record["test_loss"] for record in run] for run in runs), strict=True)
    return [math.nan if None in losses else math.fsum(losses) / len(losses) for losses in epochs]


def _curves(axes: Axes, losses: Mapping[str, list[float]], name: str, sparsity: list[float]) -> None:
    epochs = range(1, len(sparsity) + 1)
    shade = axes.twinx()
    shade.fill_between(epochs, sparsity, step="mid", color=SHADE, linewidth=0)
    shade.set_ylim(0, 1)
    shade.set_yticks([])
    axes.set_zorder(shade.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(epochs, losses[BASELINE], color=REFERENCE, linewidth=3)
    axes.plot(epochs, losses[name], color=WORSE, linewidth=1.3)
    axes.set_title(name, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(alpha=0.3)
