"""`dsd-kernels study`: several methods, each with several seeds on one task, in one command that can be cut short."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dsd_kernels.cli.launch import several
from dsd_kernels.cli.options import FilledPath, SectionedCommand
from dsd_kernels.cli.progress import say
from dsd_kernels.cli.session import check_folder
from dsd_kernels.cli.tables import print_table
from dsd_kernels.cli.tensorboard import TensorBoard, check_installed
from dsd_kernels.cli.training_options import (
    LARGEST,
    check_here,
    check_threads,
    default_device,
    option,
    shared_options,
    tensorboard_option,
)
from dsd_kernels.study import results, settings
from dsd_kernels.study.arms import BASELINE, METHODS, problems
from dsd_kernels.study.report import StudyReport, cells
from dsd_kernels.study.results import Result
from dsd_kernels.study.runner import task_of, train_all
from dsd_kernels.study.settings import INSTEAD, OTHER_SEEDS, SEEDS, Settings, StudyError
from dsd_kernels.training.config import Config, new_config, resumed_config

ALL = "all"


class ArmNames(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """Names of arms, separated by commas."""

    name = "arm,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(METHODS) if value == ALL else tuple(value.split(","))
        if unknown := [repr(name) for name in names if name not in METHODS]:
            self.fail(f"expected {ALL}, or some of {', '.join(METHODS)}, got {', '.join(unknown)}", param, ctx)
        return names


@click.command(cls=SectionedCommand)
@option(
    "Study",
    "--arms",
    f"Methods to compare: {', '.join(METHODS)}. The baseline always takes part.",
    type=ArmNames(),
    metavar="NAME,...",
    shown=ALL,
)
@option(
    "Study",
    "--seeds",
    "How many seeds: 0, 1, ..., N - 1, the same for all arms.",
    type=click.IntRange(2, LARGEST),
    metavar="N",
    shown=f"{SEEDS['cnn']} for cnn, {OTHER_SEEDS} for the others",
)
@option(
    "Study",
    "--jobs",
    "Trainings at the same time, each in a process of its own. Results do not depend on it.",
    type=click.IntRange(1, 1024),
    metavar="N",
    default=1,
    shown="1",
)
@shared_options(instead=INSTEAD)
@option(
    "Output",
    "--output",
    "Receives study.json, results/ with a file for each finished training, and the report: report.md, report.json, "
    "report.png, report-arms.png.",
    type=FilledPath(path_type=Path),
    metavar="FOLDER",
    shown="runs/study-MODEL",
)
@option(
    "Output",
    "--report",
    "Write the report here too: a Markdown file, with its JSON and its pictures beside it.",
    type=FilledPath(path_type=Path, dir_okay=False),
    metavar="FILE.md",
)
@tensorboard_option
def study(
    arms: tuple[str, ...] | None,
    seeds: int | None,
    jobs: int,
    output: Path | None,
    report: Path | None,
    tensorboard: Path | None,
    **options: Any,
) -> int:
    """Compare methods on one task, in pairs: every arm with every seed.

    All arms have the same number of epochs, dense + N (sparse + redense), and in each seed the same initial weights,
    batches and dropout. dsd is what `train` does; docs/study.md says how the others divide the same epochs. All have
    the learning rate of dsd in each epoch, but for the baseline, where it is constant.

    The result is a table of means and paired differences with confidence intervals, which says of each whether it can
    be told from zero. What is finished is never trained again: after an interruption or a kill, the same command, or
    --output alone, goes on and ends with the same numbers.
    """
    if several():
        raise click.UsageError("study trains in several processes by itself, with --jobs: start it without torchrun")
    given = {name: value for name, value in options.items() if value is not None}
    folder = output or Path("runs") / f"study-{given.get('model', 'cnn')}"
    console = Console()
    check_installed(tensorboard)
    if report and report.suffix != ".md":
        raise click.UsageError(f"--report: expected a file that ends with .md, got {report}")
    try:
        plan = prepare(folder, given, arms, seeds)
        if report:
            check_folder(report.parent, "--report")
        found = results.load_all(folder, plan)
        introduce(plan, folder, len(found), console)
        found |= train_missing(folder, plan, found, jobs, console)
        made = StudyReport(plan, task_of(plan.config), found)
        conclude(made, console)
        with TensorBoard(tensorboard) as board:
            for (arm, seed), result in found.items():
                board.write(f"{arm}-seed{seed}", result["records"])
        for stem in (folder / "report", *([report.with_suffix("")] if report else [])):
            say(console, f"Written: {', '.join(map(str, made.write(stem)))}")
    except StudyError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        say(console, f"\nInterrupted; what was finished is kept. To go on: {way_on(folder)}")
        return 130
    return 0


def prepare(folder: Path, given: dict[str, Any], arms: tuple[str, ...] | None, seeds: int | None) -> Settings:
    """The settings of a new study, or of the one in the folder; they are written before anything is trained."""
    recorded = settings.load(folder)
    config = config_of(recorded.config if recorded else None, given, folder)
    check_here("study", config)
    task = task_of(config)
    if recorded:
        plan = settings.go_on(recorded, arms, seeds, task, folder)
    else:
        plan = settings.new(config, arms or tuple(METHODS), seeds, task)
    if wrong := list(problems(plan.arms, config, task)):
        raise StudyError(f"--arms: cannot be made with these settings: {'; '.join(wrong)}; leave them out")
    check_folder(folder)
    plan.save(folder)
    return plan


def config_of(recorded: Config | None, given: dict[str, Any], folder: Path) -> Config:
    """The settings of the trainings of a new study, or of the one in the folder."""
    try:
        if recorded:
            return resumed_config(recorded, given, f"{folder} holds a study with other settings: ")
        check_threads(given)
        instead = INSTEAD.get(given.get("model", "cnn"), {})
        return new_config({**instead, **given}, default_device())
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def train_missing(
    folder: Path, plan: Settings, found: Mapping[tuple[str, int], Result], jobs: int, console: Console
) -> dict[tuple[str, int], Result]:
    """Train what is not finished, and say so as it goes."""
    missing = [pair for pair in plan.pairs() if pair not in found]
    trained = {}
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        line = progress.add_task("training", total=len(plan.pairs()), completed=len(found))
        for result in train_all(folder, plan, missing, jobs) if missing else ():
            trained[result["arm"], result["seed"]] = result
            progress.update(line, advance=1, description=f"{result['arm']} {result['seed']}")
            if not console.is_terminal:
                say(console, f"{len(found) + len(trained):>4}/{len(plan.pairs())}  {in_words(result)}")
    return trained


def in_words(result: Result) -> str:
    last = result["records"][-1]
    loss = "not finite" if last["test_loss"] is None else f"{last['test_loss']:.4f}"
    return (
        f"{result['arm']:14} seed {result['seed']:<3} test loss {loss}  "
        f"{last['test_accuracy']:.2%}  {result['seconds']:.1f} s"
    )


def introduce(plan: Settings, folder: Path, n_done: int, console: Console) -> None:
    """What is compared, on what, and where it goes."""
    say(console, f"{plan.config.model}: {len(plan.arms)} arms, {plan.n_seeds} seeds, in {folder}.")
    say(console, f"Data: {task_of(plan.config).description}.")
    if n_done:
        say(console, f"{n_done} of {len(plan.pairs())} trainings are finished already.")


def conclude(made: StudyReport, console: Console) -> None:
    """The tables, and one sentence for each arm."""
    for reference in made.primary.differences:
        header, rows = cells(made.primary, reference)
        table = Table(*header, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"Against {reference}")
        for column in table.columns[1:-1]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == BASELINE else None)
        print_table(console, table)
        for sentence in made.verdicts(reference):
            say(console, sentence.replace("`", ""), wrap=True)
        say(console, "")
    for line in made.headlines:
        say(console, line.replace("`", ""), wrap=True)


def way_on(folder: Path) -> str:
    return f"dsd-kernels study --output {shlex.quote(str(folder))}"
