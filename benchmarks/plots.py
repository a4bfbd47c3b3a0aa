"""Three pictures of a report: time over size, what a mask costs, how near each job comes to the memory's speed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .cases import JOBS
from .cells import signed, variation
from .machine import one_line
from .peers.contender import OURS as OURS_NAMES
from .results import Report, Result, Row
from .shapes import label

OURS, OURS_UNMASKED, FLOOR = "#b03a0b", "#e8935f", "#444444"
PEERS = ("#1f5fa8", "#5ba3d9", "#2f8f6b", "#8cc9a1", "#7a5ba6", "#b9a3d6", "#8a8a8a")
DPI = 120
SHOWN = {
    "step": (
        "dsd_kernels, masked",
        "dsd_kernels, no mask",
        "torch fused, no mask",
        "torch fused + bool mask on p",
        "torch fused + float masks on p, m",
        "torch foreach + float masks on p, m",
        "torch.compile'd SGD + bool masks on p, m",
    ),
    "select": ("dsd_kernels.kth_magnitude", "numpy.partition", "torch.kthvalue", "torch.topk", "torch.sort"),
    "prune": (
        "MaskedSGD.prune",
        "torch.kthvalue, compare, two products",
        "torch.nn.utils.prune.l1_unstructured, weights only",
    ),
}


def draw(report: Report, folder: Path, mark: str = "") -> list[Path]:
    """Write the pictures that the report has results for; `mark` goes into their metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in PICTURES.items():
        figure = make(report)
        if figure is None:
            continue
        figure.text(0.005, 0.005, footer(report), fontsize=6, color="#666666", va="bottom")
        figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Source": mark, "Software": None})
        written.append(folder / f"{name}.png")
    return written


def footer(report: Report) -> str:
    words, lines = one_line(report["machine"]).split("; "), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 180:
            lines.append("")
        lines[-1] += f"{word}; " if word is not words[-1] else word
    return "\n".join(lines)


def usual(report: Report, job: str) -> list[Result]:
    return [result for result in report["results"] if result["job"] == job and not variation(result)]


def size_of(result: Result) -> float | None:
    """Of a single tensor that is called by its size."""
    try:
        return float(result["inputs"])
    except ValueError:
        return None


def time_over_size(report: Report) -> Figure | None:
    """Nanoseconds a weight: flat is linear in time, and lower is faster."""
    by_job = {job: [r for r in usual(report, job) if size_of(r)] for job in SHOWN}
    by_job = {job: results for job, results in by_job.items() if len(results) > 1}
    if not by_job:
        return None
    figure = new_figure(14, 5.6)
    figure.suptitle("Time a weight over the size of one tensor: lower is faster, flat is linear")
    all_axes = figure.subplots(1, len(by_job), squeeze=False)[0]
    for axes, (job, results) in zip(all_axes, by_job.items(), strict=True):
        draw_sizes(axes, job, sorted(results, key=lambda r: r["n_weights"]))
    all_axes[0].set_ylabel("nanoseconds a weight")
    return figure


def draw_sizes(axes: Axes, job: str, results: list[Result]) -> None:
    for name, color in colors(job).items():
        points = [(r["n_weights"], row) for r in results if (row := row_of(r, name))]
        style: dict[str, Any] = {"linewidth": 2.8, "zorder": 3} if color == OURS else {"linewidth": 1.5}
        curve(axes, points, name, {"color": color, "marker": "o", "markersize": 3.5, **style})
    floors = [(r["n_weights"], r["floor"]) for r in results if r["floor"]]
    curve(axes, floors, f"the memory alone: {floors[0][1]['name']}", {"color": FLOOR, "linestyle": "--"})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title(short_title(job), fontsize=11)
    axes.set_xlabel("weights")
    axes.grid(alpha=0.3)
    legend_below(axes, 0.13)


def curve(axes: Axes, points: Sequence[tuple[int, Row]], name: str, style: dict[str, Any]) -> None:
    if points:
        axes.plot([n for n, _ in points], [1e3 * row["us"]["median"] / n for n, row in points], label=name, **style)


def mask_costs(report: Report) -> Figure | None:
    """Bars of time, in which the mask's part is dark: long bars are slow, dark ones pay for the mask."""
    wanted = [("step", "resnet50"), ("train", "cnn"), ("train", "char-lstm")]
    results = [r for job, inputs in wanted for r in usual(report, job) if r["inputs"] == inputs and masked_rows(r)]
    if not results:
        return None
    counts = [len(masked_rows(result)) for result in results]
    figure = new_figure(10, 1.6 + 0.32 * sum(counts) + 0.5 * len(counts))
    figure.suptitle("What a mask costs: the dark part of the time, over the same implementation without one")
    all_axes = figure.subplots(len(results), 1, squeeze=False, height_ratios=counts)[:, 0]
    for axes, result in zip(all_axes, results, strict=True):
        draw_costs(axes, result)
    return figure


def masked_rows(result: Result) -> list[tuple[Row, float]]:
    """Those with a mask and what it costs them, the slowest first."""
    rows = [(row, row["mask_cost"]["median"]) for row in result["rows"] if row["mask_cost"]]
    return sorted(rows, key=lambda pair: -pair[0]["us"]["median"])


def draw_costs(axes: Axes, result: Result) -> None:
    """The line on a bar reaches from quartile to quartile."""
    for row, cost in masked_rows(result):
        name, total = row["name"], row["us"]["median"] / 1e3
        without = min(total, total / (1 + cost))
        light, dark = (OURS_UNMASKED, OURS) if name.startswith(OURS_NAMES) else (PEERS[1], PEERS[0])
        axes.barh(name, without, color=light, height=0.7)
        axes.barh(name, total - without, left=without, color=dark, height=0.7)
        q1, q3 = row["us"]["q1"] / 1e3, row["us"]["q3"] / 1e3
        axes.plot([q1, q3], [name, name], color=FLOOR, linewidth=1)
        axes.annotate(signed(cost), (max(q3, total), name), xytext=(6, 0), textcoords="offset points", va="center")
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text().startswith(OURS_NAMES) else "normal")
    axes.set_title(f"{short_title(result['job'])}, {label(result['inputs'])}", fontsize=11, loc="left")
    axes.set_xlabel("milliseconds")
    axes.margins(x=0.12)
    bare(axes)


def memory_shares(report: Report) -> Figure | None:
    """Dots: the memory's own time for the bytes that the job must move, as a share of each contender's time."""
    by_job = {job: [r for r in usual(report, job) if r["floor"]] for job in SHOWN}
    by_job = {job: results for job, results in by_job.items() if results}
    if not by_job:
        return None
    figure = new_figure(14, 6.4)
    figure.suptitle("How near each comes to the memory's own speed: 100 % is the simplest pass over as many bytes")
    all_axes = figure.subplots(1, len(by_job), squeeze=False)[0]
    for axes, (job, results) in zip(all_axes, by_job.items(), strict=True):
        draw_shares(axes, job, results)
    return figure


def draw_shares(axes: Axes, job: str, results: list[Result]) -> None:
    inputs = [label(result["inputs"]) for result in results]
    for name, color in colors(job).items():
        points = [(1 / floor_ratio(r, row), i) for i, r in enumerate(results) if (row := row_of(r, name))]
        if points:
            x, y = zip(*points, strict=True)
            size = 90 if color == OURS else 40
            axes.scatter(x, y, color=color, label=name, s=size, zorder=3 if color == OURS else 2)
    axes.set_yticks(range(len(inputs)), inputs)
    axes.invert_yaxis()
    axes.axvline(1, color=FLOOR, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(right=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_title(short_title(job), fontsize=11)
    axes.grid(alpha=0.3)
    legend_below(axes, 0.08)


def floor_ratio(result: Result, row: Row) -> float:
    return row["us"]["median"] / result["floor"]["us"]["median"] if result["floor"] else float("nan")


def colors(job: str) -> dict[str, str]:
    """Red for this library, other colours for the others, in the order of SHOWN."""
    ours = [name for name in SHOWN[job] if name.startswith(OURS_NAMES)]
    peers = [name for name in SHOWN[job] if name not in ours]
    return dict(zip(ours, (OURS, OURS_UNMASKED), strict=False)) | dict(zip(peers, PEERS, strict=False))


def row_of(result: Result, name: str) -> Row | None:
    return next((row for row in result["rows"] if row["name"] == name), None)


def short_title(job: str) -> str:
    return JOBS[job].title.partition(" (")[0]


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))  # type: ignore[union-attr,call-arg]
    return figure


def legend_below(axes: Axes, distance: float) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -distance), frameon=False)


def bare(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


PICTURES = {"time_over_size": time_over_size, "mask_cost": mask_costs, "memory_share": memory_shares}
