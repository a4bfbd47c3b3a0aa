"""The report of a study: Markdown for people, JSON for programs; whatever came out is in it."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from dsd_kernels.files import replace_file
from dsd_kernels.study.arms import BASELINE, LLR, METHODS
from dsd_kernels.study.results import Result
from dsd_kernels.study.settings import INSTEAD, Settings
from dsd_kernels.study.statistics import CONFIDENCE, Difference
from dsd_kernels.study.summary import Metric, Summary, headline, metrics, short_p, summarise, verdict
from dsd_kernels.tasks import Task
from dsd_kernels.training.config import defaults
from dsd_kernels.training.jsonable import finite
from dsd_kernels.training.machine import versions

METHOD = (
    "Every arm of a seed starts from the same weights and sees the same batches in the same order with the same "
    "dropout, for the same number of epochs. All but `baseline` have the same learning rate in every epoch as `llr` "
    "(that of DSD), so a difference from `baseline` mixes what the method and what the learning rate do. A difference "
    "from `llr` is the method's: its masks, and for `acdc`, `gap` and `pgap` also their momentum restarts, for `pgap` "
    "its recombined workers."
)
STATISTICS = (
    "What is measured is the network after its last epoch, never its best epoch, on data that were not trained on. "
    "Seeds are 0, 1, 2, ... without exception. Differences are paired by seed; intervals are 95 % confidence intervals "
    "of the mean (paired t), each for its own comparison; p-values are corrected for the number of comparisons in "
    "their table (Holm), and a difference is called distinguishable from zero where the corrected p is below 0.05. Not "
    "distinguishable does not mean equal: the interval says how large a difference the seeds leave possible. Intervals "
    "are over seeds on one fixed test set: how far the numbers would move on another one is not in them. The default "
    "learning rates were chosen with seed 0, which is one of the seeds."
)


class StudyReport:
    """A finished study, ready to be shown.

    Args:
        settings: of the study.
        task: for its words.
        results: of every training.
    """

    def __init__(self, settings: Settings, task: Task, results: Mapping[tuple[str, int], Result]) -> None:
        self.settings, self.task, self.results = settings, task, results
        self.primary, self.secondary = (summarise(settings, metric, results) for metric in metrics(task))

    @property
    def title(self) -> str:
        config = self.settings.config
        n = self.settings.n_seeds
        return f"Study: {config.model}, {len(self.settings.arms)} arms, {n} paired seed{'s' if n != 1 else ''}"

    @property
    def headlines(self) -> list[str]:
        return [headline(self.primary, reference) for reference in self.primary.differences]

    def verdicts(self, reference: str) -> list[str]:
        """One sentence per arm."""
        found = self.primary.differences[reference]
        n_tested = sum(one.p is not None for one in found.values())
        return [verdict(name, reference, one, self.primary.metric, n_tested) for name, one in found.items()]

    def made_on(self) -> list[str]:
        """Machine, time, commit and versions of the trainings, and the versions here, where the report is written."""
        machines = sorted({result["machine"] for result in self.results.values()})
        commits = sorted({str(result["commit"]) for result in self.results.values()})
        seconds = sum(result["seconds"] for result in self.results.values())
        config, decisive = self.settings.config, self.settings.versions
        here = {name: version for name, version in versions().items() if version and name not in decisive}
        return [
            f"Machine: {' | '.join(machines)}; {config.device}, threads {config.threads}",
            f"Time of all trainings together: {_duration(seconds)}",
            f"Commit of the trainings: {', '.join(commits)}",
            f"Versions of the trainings: {_listed(decisive)}; where the report was written also {_listed(here)}",
        ]

    def command(self) -> str:
        """What runs this study again."""
        config, own = self.settings.config, defaults(self.settings.config.model)
        own = {**own, **INSTEAD.get(config.model, {}), "sparsity": own["sparsity"] * config.iterations}
        given = [_option(name, value) for name, value in asdict(config).items() if own.get(name, value) != value]
        if config.iterations != 1:
            given.append(f"--iterations {config.iterations}")
        if set(self.settings.arms) != set(METHODS):
            given.append(f"--arms {','.join(self.settings.arms)}")
        seeds = f"--seeds {self.settings.n_seeds}"
        return " ".join(["dsd-kernels study", f"--model {config.model}", *given, seeds])

    def to_dict(self) -> dict[str, Any]:
        """All that the report was made of."""
        return {
            "title": self.title,
            "command": self.command(),
            "config": self.settings.config.to_dict(),
            "arms": list(self.settings.arms),
            "seeds": list(range(self.settings.n_seeds)),
            "data": {"description": self.task.description, "sha256": self.task.sha256, "n_test": self.task.n_test},
            "made_on": self.made_on(),
            "versions": versions(),
            "metrics": {one.metric.name: _summary_dict(one) for one in (self.primary, self.secondary)},
            "primary_metric": self.primary.metric.name,
            "headlines": self.headlines,
            "verdicts": {reference: self.verdicts(reference) for reference in self.primary.differences},
            "phases": {name: self.results[name, 0]["phases"] for name in self.settings.arms},
        }

    def markdown(self, picture: str, arms_picture: str) -> str:
        """The report; `picture` and `arms_picture` are the files beside it."""
        config, task = self.settings.config, self.task
        one = f" One {task.item} is {100 / task.n_test:.2g} points." if task.item == "image" else ""
        lines = [f"# {self.title}", "", *(f"**{line}**\n" for line in self.headlines)]
        lines += [f"![Paired differences with 95 % intervals]({picture})", ""]
        for reference in self.primary.differences:
            lines += [*_section(self.primary, reference), "", *(f"- {v}" for v in self.verdicts(reference)), ""]
        lines += ["## The other metric", "", "Shown for completeness; the study was to be judged by the one above.", ""]
        lines += [*_table(self.secondary, BASELINE), ""]
        lines += ["## The arms", "", f"![Test loss and sparsity of every arm]({arms_picture})", ""]
        lines += [f"- `{name}`: {METHODS[name].about}. {self._phases(name)}." for name in self.settings.arms]
        lines += ["", "## How it was made", "", METHOD, "", STATISTICS, "", f"    {self.command()}", ""]
        lines += [f"- Data: {task.description}; SHA-256 {task.sha256}.{one}"]
        settings = (f"{key} {_shown(value)}" for key, value in config.to_dict().items() if key != "seed")
        lines += [f"- Settings: {', '.join(settings)}; seeds 0 to {self.settings.n_seeds - 1}"]
        lines += [f"- {line}" for line in self.made_on()]
        return "\n".join(lines) + "\n"

    def _phases(self, name: str) -> str:
        """The lengths and sparsities of an arm's phases; of one that is never pruned, how long which learning rate."""
        result = self.results[name, 0]
        if not any(sparsity for _, _, sparsity in result["phases"]):
            rates = _runs(f"{record['lr']:g}" for record in result["records"])
            return "Epochs at learning rate: " + ", ".join(f"{n} at {rate}" for rate, n in rates)
        phases = (
            f"{phase} {n}" + (f" ({sparsity:.3g})" if sparsity else "") for phase, n, sparsity in result["phases"]
        )
        return "Epochs (sparsity): " + ", ".join(text if n == 1 else f"{n} x {text}" for text, n in _runs(phases))

    def write(self, stem: Path) -> list[Path]:
        """Write stem.md, stem.json and the two pictures."""
        from dsd_kernels.study.plot import arms_picture, differences_picture  # matplotlib is slow to import

        pictures = {
            stem.with_name(f"{stem.name}.png"): differences_picture(self.primary, self.title),
            stem.with_name(f"{stem.name}-arms.png"): arms_picture(self.settings, self.task, self.results),
        }
        names = [path.name for path in pictures]
        files = {
            stem.with_name(f"{stem.name}.md"): self.markdown(*names).encode(),
            stem.with_name(f"{stem.name}.json"): (
                json.dumps(finite(self.to_dict()), indent=1, allow_nan=False) + "\n"
            ).encode(),
            **pictures,
        }
        for path, content in files.items():
            replace_file(path, content)
        return list(files)


def cells(summary: Summary, reference: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table against a reference: strings, for the terminal and for Markdown."""
    metric, found = summary.metric, summary.differences[reference]
    header = ["arm", "ends", f"mean ({metric.unit})", "SD", f"minus {reference}", "95 % interval", "p", "p (Holm)", ""]
    rows = []
    for arm in summary.arms:
        one = found.get(arm.name)
        if one is None and arm.name != reference:
            continue
        level = [arm.name, f"{arm.sparsity:.0%} pruned", number(arm.mean, metric), number(arm.spread, metric)]
        rows.append(level + (_difference_cells(one, metric) if one else ["", "", "", "", ""]))
    return header, rows


def _difference_cells(one: Difference, metric: Metric) -> list[str]:
    interval = "-"
    if one.low is not None and one.high is not None:
        interval = f"[{one.low:+.{metric.digits}f}, {one.high:+.{metric.digits}f}]"
    p, adjusted = ("-" if p is None else short_p(p) for p in (one.p, one.adjusted_p))
    mark = metric.word(one.mean) if one.is_distinguishable else "n.d."
    return [number(one.mean, metric, "+"), interval, p, adjusted, mark]


def number(value: float, metric: Metric, sign: str = "") -> str:
    return f"{value:{sign}.{metric.digits}f}" if math.isfinite(value) else "-"


def _table(summary: Summary, reference: str) -> list[str]:
    header, rows = cells(summary, reference)
    aligned = ["---", *["---:"] * (len(header) - 2), "---"]
    return [f"| {' | '.join(row)} |" for row in (header, aligned, *rows)]


def _section(summary: Summary, reference: str) -> list[str]:
    way = "higher" if summary.metric.higher_is_better else "lower"
    why = {
        BASELINE: "the same number of epochs, never pruned, at a constant learning rate",
        LLR: "never pruned, but at the same learning rate in every epoch: the difference is the method's",
    }[reference]
    caption = (
        f"Test {summary.metric.name} in {summary.metric.unit}, {way} is better; n.d.: not distinguishable from zero."
    )
    return [f"## Against `{reference}`: {why}", "", caption, "", *_table(summary, reference)]


def _summary_dict(summary: Summary) -> dict[str, Any]:
    return {
        "unit": summary.metric.unit,
        "confidence": CONFIDENCE,
        "arms": {arm.name: asdict(arm) for arm in summary.arms},
        "differences": {
            reference: {
                name: {**asdict(one), "is_distinguishable": one.is_distinguishable} for name, one in found.items()
            }
            for reference, found in summary.differences.items()
        },
    }


def _option(name: str, value: Any) -> str:
    option = f"--{name.replace('_', '-')}"
    return option if value is True else f"{option} {shlex.quote(_shown(value))}"


def _shown(value: Any) -> str:
    return ",".join(f"{part:g}" for part in value) if isinstance(value, list | tuple) else str(value)


def _runs(texts: Iterable[str]) -> list[tuple[str, int]]:
    """Each text once where it follows itself, and how often."""
    return [(text, len(list(same))) for text, same in groupby(texts)]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _listed(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
