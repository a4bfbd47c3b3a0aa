"""`dsd-kernels train`: its options, how they become a Config, and what is refused before anything is written."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from dsd_kernels.cli import INSTALL, checkpoint, session
from dsd_kernels.cli.config import Config, defaults, new_config, resumed_config
from dsd_kernels.cli.options import FilledPath, Number, Numbers, SectionedCommand, SectionOption
from dsd_kernels.distributions import DISTRIBUTIONS
from dsd_kernels.ops.backends import BACKENDS, backends

NEEDS = {"cnn": {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}, "lstm": {"matplotlib": "matplotlib"}}
MODELS = tuple(NEEDS)
LARGEST = 2**31 - 1
MOST_ITERATIONS = 1000


def option(section: str, name: str, text: str, *, shown: str = "", **kwargs: Any) -> Callable[..., Any]:
    """An option whose default is only shown: what is not given comes from the model or from the checkpoint."""
    default = f"  [default: {shown}]" if shown else ""
    return click.option(name, cls=SectionOption, section=section, help=text + default, **{"default": None, **kwargs})


def epochs_option(name: str, text: str) -> Callable[..., Any]:
    return option("Phases", f"--{name}", text, type=click.IntRange(0, LARGEST), metavar="EPOCHS", shown=by_model(name))


def by_model(field: str) -> str:
    values = {model: f"{defaults(model)[field]:g}" for model in MODELS}
    if len(set(values.values())) == 1:
        return values[MODELS[0]]
    return ", ".join(f"{value} for {model}" for model, value in values.items())


def joined(_: click.Context, __: click.Parameter, values: tuple[tuple[float, ...], ...]) -> tuple[float, ...] | None:
    return sum(values, ()) or None


@click.command(cls=SectionedCommand)
@option(
    "Task",
    "--model",
    "cnn: 8x8 images of handwritten digits (scikit-learn). lstm: characters of Python's own documentation.",
    type=click.Choice(MODELS),
    shown="cnn",
)
@option("Task", "--seed", "Of initial weights, order and dropout.", type=click.IntRange(0, LARGEST), shown="0")
@epochs_option("dense", "Length of the first dense phase.")
@epochs_option("sparse", "Length of the sparse phase: the smallest weights are pruned at its start and stay 0.")
@epochs_option("redense", "Length of the re-dense phase: pruned weights start again from 0.")
@option(
    "Phases",
    "--sparsity",
    "Fraction of the weights to prune, in [0, 1). One for each iteration: 0.5,0.25 or --sparsity twice.",
    type=Numbers(Number(below=1)),
    multiple=True,
    callback=joined,
    metavar="FRACTION",
    shown="0.5",
)
@option(
    "Phases",
    "--iterations",
    "How often sparse and re-dense follow the dense phase.",
    type=click.IntRange(1, MOST_ITERATIONS),
    metavar="N",
    shown="one per --sparsity",
)
@option(
    "Phases",
    "--lr-factors",
    "Multiply the learning rate: in dense, sparse and re-dense phases, or one for each of the 1 + 2N phases. Written "
    "1,1,0.1 or --lr-factors once for each.",
    type=Numbers(Number()),
    multiple=True,
    callback=joined,
    metavar="FACTOR,...",
    shown="1,1,0.1",
)
@option(
    "Phases",
    "--distribution",
    "Of sparsity over the layers: the same in each; more in the larger ones (Erdos-Renyi kernel); or one threshold.",
    type=click.Choice(DISTRIBUTIONS),
    shown="uniform",
)
@option("Optimizer", "--lr", "Learning rate.", type=Number(exclusive=True), shown=by_model("lr"))
@option("Optimizer", "--momentum", "In [0, 1).", type=Number(below=1), shown=by_model("momentum"))
@option("Optimizer", "--nesterov/--no-nesterov", "Nesterov's momentum.", shown="no")
@option("Optimizer", "--weight-decay", "L2 penalty.", type=Number(), shown=by_model("weight_decay"))
@option(
    "Optimizer",
    "--mask-momentum",
    "Momentum of pruned weights: zero it, or keep it running as plain SGD would.",
    type=click.Choice(["zero", "keep"]),
    shown="zero",
)
@option(
    "Optimizer",
    "--batch-size",
    "Images, or windows of 64 characters.",
    type=click.IntRange(1, LARGEST),
    metavar="N",
    shown=by_model("batch_size"),
)
@option("Machine", "--device", "cpu, cuda or cuda:N.", metavar="DEVICE", shown="cuda if there is one, otherwise cpu")
@option(
    "Machine",
    "--backend",
    "Code that updates and prunes; see dsd-kernels doctor.",
    type=click.Choice(BACKENDS),
    shown="the fastest available",
)
@option(
    "Machine",
    "--threads",
    "CPU threads. Networks this small gain nothing from more, and the last bits of results depend on it.",
    type=click.IntRange(1, LARGEST),
    metavar="N",
    shown=by_model("threads"),
)
@option(
    "Output",
    "--output",
    "Receives checkpoint.pt, metrics.json and curves.png.",
    type=FilledPath(path_type=Path),
    metavar="FOLDER",
    shown="runs/MODEL",
)
@option("Output", "--resume", "Go on with the run in the output folder.", is_flag=True, default=False)
@option("Output", "--overwrite", "Replace the run in the output folder.", is_flag=True, default=False)
def train(output: Path | None, resume: bool, overwrite: bool, **options: Any) -> int:
    """Train dense-sparse-dense on real data, beside a baseline.

    The baseline has the same number of epochs, initial weights, batches in the same order and learning rate in every
    epoch; it is never pruned, so the mask is the whole difference. Every default run takes at most about two minutes
    on two cores.

    A checkpoint is written after every epoch. Ctrl-C saves one after the batch under way; --resume goes on from there
    and ends, on the same machine and versions, with the same bits as a run that was never interrupted.
    """
    given = {name: value for name, value in options.items() if value is not None}
    folder = output or Path("runs") / given.get("model", "cnn")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    state = checkpoint.load(folder / checkpoint.NAME) if resume else None
    config = config_of(state, given, folder)
    check_packages(config.model)
    check_machine(config)
    if not resume and not overwrite and session.files_of_a_run(folder):
        raise click.UsageError(f"{folder} holds a run already: --resume it, --overwrite it, or choose another --output")
    session.check_writable(folder)
    return session.train(config, state, folder, Console())


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


def check_threads(given: dict[str, Any]) -> None:
    """Refuse what OpenMP dies of. A run from another machine is resumed with the threads that it began with."""
    n_cpus = os.cpu_count() or 1
    if given.get("threads", 1) > n_cpus:
        raise ValueError(f"--threads: expected 1 to {n_cpus}, the logical CPUs here, got {given['threads']}")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_packages(model: str) -> None:
    for module, package in NEEDS[model].items():
        if importlib.util.find_spec(module) is None:
            raise click.ClickException(f"train --model {model} needs {package}, which is not installed: {INSTALL}")


def check_machine(config: Config) -> None:
    """Refuse a device or a backend that is not here, before anything is trained or written."""
    device = check_device(config.device)
    status = next((row for row in backends() if (row.backend, row.device) == (config.backend, device.type)), None)
    if status and not status.available:
        raise click.UsageError(f"--backend: {config.backend} does not serve {device.type} here: {status.reason}")


def check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise click.UsageError(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise click.UsageError(f"--device: {name!r} is not available: this PyTorch sees {n_gpus} CUDA devices")
    return device
