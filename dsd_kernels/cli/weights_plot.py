"""weights.png: |w| of each layer around the changes of phase; masks.png: what the masks of iterations share."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsd_kernels.training.history import WeightHistory

MOST_LAYERS, MOST_PHASES = 8, 7
TALLEST = 2.5  # times the tallest bar of the first column: weights that just grew again from 0 are many more
BARS, CUT, CHANCE = "#7db3f0", "#b03a0b", "#24292f"


def weights_figure(history: WeightHistory) -> Figure:
    """A row for each layer (the largest ones), a column for the end of each phase.

    A line marks the threshold below which the next phase pruned: the gap beside it in the next column is what that
    left, and the column after that shows how it filled. Bars that are taller than the panel say how tall.
    """
    snapshots = history.snapshots[:MOST_PHASES]
    names = _largest(snapshots[0]["layers"])
    n_rows, n_columns = len(names), len(snapshots)
    figure = Figure(figsize=(1 + 2.4 * n_columns, 0.9 + 1.35 * n_rows), dpi=90, layout="constrained")
    figure.suptitle("|w| of the weights that are not pruned; red: threshold of the next phase", fontsize=10)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharex="row", sharey="row")
    for row, name in enumerate(names):
        top = TALLEST * max(1, *snapshots[0]["layers"][name]["counts"])
        for column, snapshot in enumerate(snapshots):
            _histogram(panels[row][column], snapshot["layers"][name], top)
        panels[row][0].set_ylabel(name, fontsize=8)
        panels[row][0].set_ylim(0, top)
    for column, snapshot in enumerate(snapshots):
        panels[0][column].set_title(snapshot["when"], fontsize=9)
    return figure


def _largest(layers: dict[str, Any]) -> list[str]:
    """Names of the layers with most weights, in their own order."""
    sizes = {name: sum(layer["counts"]) + layer["n_masked"] for name, layer in layers.items()}
    kept = sorted(sizes, key=lambda name: -sizes[name])[:MOST_LAYERS]
    return [name for name in layers if name in kept]


def _histogram(axes: Axes, layer: dict[str, Any], top: float) -> None:
    counts, width = layer["counts"], layer["largest"] / len(layer["counts"])
    if math.isfinite(width):  # not so where training diverged
        axes.bar([(i + 0.5) * width for i in range(len(counts))], counts, width=width, color=BARS)
    if layer["threshold"] is not None and math.isfinite(layer["threshold"]):
        axes.axvline(layer["threshold"], color=CUT, linewidth=1.5)
    notes = [f"{layer['n_masked']:,} pruned"] if layer["n_masked"] else []
    if max(counts) > top:
        notes.append(f"bar of {max(counts):,}")
    axes.text(0.97, 0.9, "\n".join(notes), transform=axes.transAxes, ha="right", va="top", fontsize=7)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=7)


def masks_figure(history: WeightHistory) -> Figure:
    """For each layer and new mask, how much of what it pruned the mask before it had pruned too; a dot: by chance."""
    overlaps = history.overlaps
    names = list(overlaps[0]["layers"])
    height = 0.8 / len(overlaps)
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(names) * max(1, len(overlaps) / 2)), dpi=90, layout="constrained")
    axes = figure.subplots()
    for i, overlap in enumerate(overlaps):
        rows = [row + (i - (len(overlaps) - 1) / 2) * height for row in range(len(names))]
        shares = [overlap["layers"][name]["again"] for name in names]
        shade = 0.35 + 0.65 * (i + 1) / len(overlaps)
        label = f"mask {i + 2} beside mask {i + 1}"
        axes.barh(rows, shares, height=0.9 * height, color=BARS, alpha=shade, label=label)
        axes.plot([overlap["layers"][name]["chance"] for name in names], rows, ".", color=CHANCE)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the newly pruned weights that were pruned before; dot: a random mask")
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    return figure
