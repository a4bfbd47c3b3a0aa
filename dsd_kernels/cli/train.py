"""`dsd-kernels train`: its options, how they become a Config, and what is refused before anything is written."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dsd_kernels.cli import session
from dsd_kernels.cli.launch import agree, from_first, joined, restarted
from dsd_kernels.cli.options import FilledPath, Number, SectionedCommand
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
from dsd_kernels.training.ranks import Ranks


@click.command(cls=SectionedCommand)
@option("Task", "--seed", "Of initial weights, order and dropout.", type=click.IntRange(0, LARGEST), shown="0")
@shared_options(instead={})
@option(
    "Machine",
    "--rank-timeout",
    "How long ranks that torchrun started wait for each other, in seconds.",
    type=Number(exclusive=True, below=1e6),
    metavar="SECONDS",
    default=600.0,
    shown="600",
)
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
def train(
    output: Path | None,
    tensorboard: Path | None,
    rank_timeout: float,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> int:
    """Train dense-sparse-dense on real data, beside a baseline.

    The baseline has the same number of epochs, initial weights, batches in the same order and learning rate in every
    epoch; it is never pruned, so the mask is the whole difference. Every default run takes at most about two minutes
    on two cores.

    A checkpoint is written after every epoch, and the one before is kept: a damaged one is passed over. Ctrl-C saves
    one after the batch under way; --resume goes on from there and ends, on the same machine and versions, with the same
    bits as a run that was never interrupted.

    Over several processes or hosts: torchrun --nproc-per-node N -m dsd_kernels train ...; each batch is divided among
    them. With --max-restarts a run goes on by itself when a process dies. See docs/launch.md.
    """
    given = {name: value for name, value in options.items() if value is not None}
    folder = output or Path("runs") / given.get("model", "cnn")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    with joined(rank_timeout) as ranks:
        state = from_first(ranks, lambda: state_to_resume(folder, ranks, asked=resume))
        config = from_first(ranks, lambda: config_of(state, given, folder))
        agree(ranks, lambda: check_here("train", config, ranks))
        from_first(ranks, lambda: check_output(folder, tensorboard, may_hold_a_run=overwrite or state is not None))
        return session.train(config, state, folder, Console(), tensorboard, ranks)


def state_to_resume(folder: Path, ranks: Ranks, *, asked: bool) -> dict[str, Any] | None:
    """The state to go on from: if asked for, or if torchrun started again what had begun this very run."""
    path = folder / checkpoint.NAME
    if not asked and not (restarted() and any(file.exists() for file in checkpoint.files(path))):
        return None
    state = checkpoint.load_newest(path, note)
    return state if asked or state.get("launch") == ranks.launch else None


def check_output(folder: Path, tensorboard: Path | None, *, may_hold_a_run: bool) -> None:
    """Refuse, before anything is trained, what could not be written or would destroy a run."""
    check_installed(tensorboard)
    if not may_hold_a_run and session.files_of_a_run(folder):
        raise click.UsageError(f"{folder} holds a run already: --resume it, --overwrite it, or choose another --output")
    session.check_writable(folder)


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
