"""One call of `train`: the folder, the machine's settings, the interruption, and the files at the end."""

import shlex
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console

from dsd_kernels.cli import report
from dsd_kernels.cli.launch import agree, naming_lost_ranks
from dsd_kernels.cli.progress import observer, say
from dsd_kernels.cli.run import Run
from dsd_kernels.cli.tensorboard import Several, TensorBoard
from dsd_kernels.tasks import load
from dsd_kernels.training import checkpoint
from dsd_kernels.training.arm import ALONE
from dsd_kernels.training.config import Config
from dsd_kernels.training.execution import execution
from dsd_kernels.training.ranks import Ranks

METRICS = "metrics.json"
MADE_AT_THE_END = (METRICS, "curves.png", "weights.png", "masks.png")


class Interruption:
    """Remembers that SIGINT or SIGTERM came, so that the batch under way can end; a second one acts at once.

    A signal to one of several ranks stops all of them, after the same batch: they ask together.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.signal = 0

    def __call__(self) -> bool:
        self.signal = self.ranks.largest(self.signal)
        return self.signal > 0


@contextmanager
def interruption(ranks: Ranks) -> Iterator[Interruption]:
    asked = Interruption(ranks)
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(number: int, _: FrameType | None) -> None:
        asked.signal = number
        restore()

    for number in previous:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        restore()


def check_folder(folder: Path, option: str = "--output") -> None:
    """Make the folder and write a file in it, so that a run does not fail only when it has something to save."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise click.UsageError(f"{option}: cannot write in {folder}: {error.strerror}") from error


def check_writable(folder: Path) -> None:
    """Refuse a folder that the files of a run cannot be written in."""
    check_folder(folder)
    for path in files_of_a_run(folder):
        if path.is_dir():
            raise click.UsageError(f"--output: {path} is a folder, where a run keeps a file")


def files_of_a_run(folder: Path) -> list[Path]:
    files = (*checkpoint.files(folder / checkpoint.NAME), *(folder / name for name in MADE_AT_THE_END))
    return [file for file in files if file.exists()]


def prepare(config: Config, state: dict[str, Any] | None, folder: Path, ranks: Ranks) -> Run:
    """The run that a checkpoint's state describes, or a new one.

    Raises:
        CheckpointError: it does not fit, or the data are not those that it was made with.
    """
    task = load(config.model, config.dataset, characters=config.characters, image_size=config.image_size)
    if state is None:
        return Run(config, task, ranks)
    with checkpoint.fitting(folder / checkpoint.NAME):
        if state["data_sha256"] != task.sha256:
            raise checkpoint.CheckpointError(
                f"{folder / checkpoint.NAME}: made with other data (SHA-256 {state['data_sha256'][:8]}..., here "
                f"{task.sha256[:8]}...), which come with Python or scikit-learn: use the version that it was made with"
            )
        run = Run(config, task, ranks)
        run.load_state_dict(state)
    return run


class Saver:
    """Writes the checkpoints of one run, on its first rank, and knows what stands if that is cut short."""

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        self.folder, self.path = folder, folder / checkpoint.NAME
        self.stands = resumed

    def save(self, run: Run) -> None:
        """Replace the checkpoint; the first one of a new run also takes the place of all of an older run."""
        state = run.state_dict()
        if not run.ranks.is_first:
            return
        checkpoint.save(self.path, state, begins=not self.stands)
        if not self.stands:
            for name in MADE_AT_THE_END:
                (self.folder / name).unlink(missing_ok=True)
        self.stands = True

    @property
    def way_on(self) -> str:
        """What is on the disk, and how to go on from there."""
        if not self.stands:
            return "no checkpoint of this run was written" + (", the older run stands" if self.path.exists() else "")
        return f"the last checkpoint in {self.folder} stands; to go on: {resume_command(self.folder)}"


def resume_command(folder: Path) -> str:
    return f"dsd-kernels train --resume --output {shlex.quote(str(folder))}"


def train(
    config: Config,
    state: dict[str, Any] | None,
    folder: Path,
    console: Console,
    tensorboard: Path | None = None,
    ranks: Ranks = ALONE,
) -> int:
    """Train from where the run stands, and leave its files in the folder.

    Returns:
        The exit code: 0, or 128 + the signal that interrupted it (130 for Ctrl-C).
    """
    saver = Saver(folder, resumed=state is not None)
    try:
        with execution(config), interruption(ranks) as asked, naming_lost_ranks(ranks, lambda: saver.way_on):
            run = agree(ranks, lambda: prepare(config, state, folder, ranks))
            if asked():
                return _interrupted(saver, "before training began", asked.signal, ranks)
            if not _train(run, saver, asked, console, tensorboard if ranks.is_first else None):
                return 128 + asked.signal
            if ranks.is_first:
                _conclude(run, folder, console)
    except KeyboardInterrupt:
        return _interrupted(saver, "at once", signal.SIGINT, ranks)
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}"
        raise click.ClickException(f"{what}; {saver.way_on}") from error
    return 0


def _train(run: Run, saver: Saver, asked: Interruption, console: Console, tensorboard: Path | None) -> bool:
    """Train to the end; False if it was stopped, which it says."""
    report.introduce(run, console)
    if not saver.stands:  # the second of two files that are alike would be no way back
        saver.save(run)
    with observer(console, run) as watcher, TensorBoard(tensorboard) as board:
        finished = run.train(Several(watcher, board), lambda: saver.save(run), asked)
    if not finished:
        say(console, f"\nStopped and saved in {saver.path}: {run.position}.")
        say(console, f"To go on: {resume_command(saver.folder)}")
    return finished


def _conclude(run: Run, folder: Path, console: Console) -> None:
    from dsd_kernels.cli.plot import write_pictures  # matplotlib is slow to import, and only needed here

    report.write_metrics(run, folder / METRICS)
    pictures = write_pictures(run, folder)
    report.conclude(run, console)
    say(console, f"Written to {folder}: {', '.join((checkpoint.NAME, METRICS, *pictures))}")


def _interrupted(saver: Saver, when: str, number: int, ranks: Ranks) -> int:
    if ranks.is_first:
        click.echo(f"interrupted {when}; {saver.way_on}", err=True)
    return 128 + number
