"""What is seen while a run trains: one moving line on a terminal, one line per epoch elsewhere."""

from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dsd_kernels.cli.run import Run
from dsd_kernels.training.arm import Arm, Record

BATCHES_PER_READING = 10  # reading the loss makes the host wait for a GPU


class Lines:
    """One line at the end of every epoch."""

    def __init__(self, console: Console, run: Run) -> None:
        self.console = console
        self.loss_unit = run.task.loss_unit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def batch(self, _: Arm, __: Tensor) -> None:
        return None

    def epoch(self, arm: Arm, record: Record) -> None:
        say(
            self.console,
            f"{arm.name:8}  epoch {record['epoch']:>2}/{arm.n_epochs}  {record['phase']:9}  "
            f"train {record['train_loss']:.4f}  test {record['test_loss']:.4f} {self.loss_unit}  "
            f"{record['test_accuracy']:.2%}",
        )


class Bar:
    """A progress bar over both arms, with the phase, the last loss and the last test accuracy."""

    def __init__(self, console: Console, run: Run) -> None:
        self.loss_per_nat, self.loss_unit = run.task.loss_per_nat, run.task.loss_unit
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[loss]}  {task.fields[accuracy]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        done = sum(arm.epoch * arm.n_batches + arm.batch for arm in run)
        total = sum(arm.n_epochs * arm.n_batches for arm in run)
        self.line = self.progress.add_task("starting", total=total, completed=done, loss="", accuracy="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def batch(self, arm: Arm, loss: Tensor) -> None:
        self.progress.advance(self.line)
        if arm.batch % BATCHES_PER_READING == 1:
            self.progress.update(
                self.line,
                description=f"{arm.name} {arm.stage} {arm.epoch + 1}/{arm.n_epochs}",
                loss=f"{loss.item() * self.loss_per_nat:.3f} {self.loss_unit}",
            )

    def epoch(self, _: Arm, record: Record) -> None:
        self.progress.update(self.line, accuracy=f"test {record['test_accuracy']:.2%}")


def say(console: Console, text: str, *, wrap: bool = False) -> None:
    """Print plain text; as it is, so that paths and commands can be copied, or wrapped at the console's width."""
    console.print(text, highlight=False, markup=False, soft_wrap=not wrap)


def note(text: str) -> None:
    """One line beside the output, on stderr."""
    click.echo(f"note: {text}", err=True)


def observer(console: Console, run: Run) -> Bar | Lines:
    return Bar(console, run) if console.is_terminal else Lines(console, run)
