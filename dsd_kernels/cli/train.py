"""`dsd-kernels train`: its options, how they become a Config, and what is refused before anything is written."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dsd_kernels.cli import session
from dsd_kernels.cli.options import FilledPath, SectionedCommand
from dsd_kernels.cli.progress import note
from dsd_kernels.cli.tensorboard import check_installed
from dsd_kernels.cli.training_options import (
    LARGEST,
    check_here,
    check_threads,
    default_device,
    option,
    shared_options,
    tensorboard_option,
)
from dsd_kernels.training import checkpoint
from dsd_kernels.training.config import Config, new_config, resumed_config


@click.command(cls=SectionedCommand)
@option("Task", "--seed", "Of initial weights, order and dropout.", type=click.IntRange(0, LARGEST), shown="0")
@shared_options(instead={})
@option(
    "Output",
    "--output",
    "Receives checkpoint.pt, checkpoint.previous.pt, metrics.json, curves.png (loss, accuracy, sparsity), weights.png "
    "(histograms of |w|) and, with more than one iteration, masks.png (what masks share).",
    type=FilledPath(path_type=Path),
    metavar="FOLDER",
    shown="runs/MODEL",
)
@tensorboard_option
@option("Output", "--resume", "Go on with the run in the output folder.", is_flag=True, default=False)
@option("Output", "--overwrite", "Replace the run in the output folder.", is_flag=True, default=False)
def train(output: Path | None, tensorboard: Path | None, resume: bool, overwrite: bool, **options: Any) -> int:
    """Train dense-sparse-dense on real data, beside a baseline.

    The baseline has the same number of epochs, initial weights, batches in the same order and learning rate in every
    epoch; it is never pruned, so the mask is the whole difference. Every default run takes at most about two minutes
    on two cores.

    A checkpoint is written after every epoch, and the one before is kept: a damaged one is passed over. Ctrl-C saves
    one after the batch under way; --resume goes on from there and ends, on the same machine and versions, with the same
    bits as a run that was never interrupted.
    """
    given = {name: value for name, value in options.items() if value is not None}
    folder = output or Path("runs") / given.get("model", "cnn")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    state = checkpoint.load_newest(folder / checkpoint.NAME, note) if resume else None
    config = config_of(state, given, folder)
    check_here("train", config)
    check_installed(tensorboard)
    if not resume and not overwrite and session.files_of_a_run(folder):
        raise click.UsageError(f"{folder} holds a run already: --resume it, --overwrite it, or choose another --output")
    session.check_writable(folder)
    return session.train(config, state, folder, Console(), tensorboard)


def config_of(state: dict[str, Any] | None, given: dict[str, Any], folder: Path) -> Config:
    """The settings of a new run, or of the one to resume."""
    recorded = None
    if state is not None:
        with checkpoint.fitting(folder / checkpoint.NAME):
            recorded = Config.from_dict(state["config"])
    try:
        if recorded:
            return resumed_config(recorded, given)
        check_threads(given)
        return new_config(given, default_device())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
