"""The pictures of a run; curves.png: loss and accuracy of both arms over the epochs, with the phases shaded."""

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dsd_kernels.cli.run import Run
from dsd_kernels.cli.tables import percent
from dsd_kernels.cli.weights_plot import masks_figure, weights_figure
from dsd_kernels.files import replace_file
from dsd_kernels.training.arm import phase_names

CURVES, WEIGHTS, MASKS = "curves.png", "weights.png", "masks.png"
# the baseline is broad and pale, so that it is seen where both are the same
BASELINE_STYLE: dict[str, Any] = {"color": "#7db3f0", "linewidth": 3.5}
DSD_STYLE: dict[str, Any] = {"color": "#b03a0b", "linewidth": 1.5}
SPARSE_SHADE = "#e8e8ec"


def write_pictures(run: Run, folder: Path) -> list[str]:
    """Draw a finished run.

    Returns:
        The names of the files: that of masks only if there was more than one.
    """
    figures = {CURVES: curves_figure(run)}
    if (history := run.dsd.history) and history.snapshots:
        figures[WEIGHTS] = weights_figure(history)
    if history and history.overlaps:
        figures[MASKS] = masks_figure(history)
    for name, figure in figures.items():
        content = BytesIO()
        figure.savefig(content, format="png")
        replace_file(folder / name, content.getvalue())
    return list(figures)


def curves_figure(run: Run) -> Figure:
    """Loss, accuracy and sparsity over the epochs."""
    figure = Figure(figsize=(9, 8), dpi=110, layout="constrained")
    loss, accuracy, sparsity = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
    figure.suptitle(f"{run.config.model}: DSD beside the same training without pruning")
    _draw(loss, run, "loss")
    _draw(accuracy, run, "accuracy")
    _label_phases(loss, run)
    if run.task.loss_unit == "nats" and any(record["test_loss"] > 0 for arm in run for record in arm.records):
        loss.set_yscale("log")  # it refuses a run whose losses are all NaN
    loss.set_ylabel(f"loss ({run.task.loss_unit})")
    loss.legend(loc="best", ncols=2)
    accuracy.set_ylim(_range_of_interest(run))
    accuracy.set_ylabel(f"accuracy per {run.task.item}")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    _draw_sparsity(sparsity, run)
    return figure


def _draw_sparsity(axes: Axes, run: Run) -> None:
    epochs = [record["epoch"] for record in run.dsd.records]
    axes.step(epochs, [record["sparsity_actual"] for record in run.dsd.records], where="mid", color=DSD_STYLE["color"])
    axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel("pruned")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw(axes: Axes, run: Run, quantity: str) -> None:
    for arm, label, style in ((run.baseline, "baseline", BASELINE_STYLE), (run.dsd, "DSD", DSD_STYLE)):
        epochs = [record["epoch"] for record in arm.records]
        for data, dashes in (("test", "-"), ("train", ":")):
            values = [record[f"{data}_{quantity}"] for record in arm.records]
            axes.plot(epochs, values, linestyle=dashes, label=f"{label}, {data}", **style)
    schedule = run.dsd.flow.schedule
    for start, phase in zip(schedule.starts, schedule, strict=True):
        if phase.sparsity > 0:
            axes.axvspan(start + 0.5, start + phase.length + 0.5, color=SPARSE_SHADE, zorder=0, linewidth=0)
    axes.set_xlim(0.5, schedule.length + 0.5)
    axes.grid(alpha=0.3)


def _range_of_interest(run: Run) -> tuple[float, float]:
    """Around all accuracies but those of the first fifth of the epochs, whose rise would flatten all the rest."""
    records = [record for arm in run for record in arm.records[run.dsd.n_epochs // 5 :]]
    values: list[float] = [record[key] for record in records for key in ("train_accuracy", "test_accuracy")]
    spread = max(values) - min(values) + 0.01
    return min(values) - 0.3 * spread, max(values) + 0.1 * spread


def _label_phases(axes: Axes, run: Run) -> None:
    schedule = run.dsd.flow.schedule
    for name, start, phase in zip(phase_names(schedule), schedule.starts, schedule, strict=True):
        pruned = f"{percent(phase.sparsity, digits=0)} pruned" if phase.sparsity > 0 else "none pruned"
        axes.annotate(
            f"{name}\n{pruned}\nlr {run.config.lr * phase.lr_factor:g}",
            (start + phase.length / 2 + 0.5, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            horizontalalignment="center",
            fontsize=9,
        )
