"""The options of a training, which `train` and `study` share; each is a field of Config."""

import os
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import click
import torch

from dsd_kernels.cli import INSTALL
from dsd_kernels.cli.options import FilledPath, Number, Numbers, SectionOption
from dsd_kernels.distributions import DISTRIBUTIONS
from dsd_kernels.ops.backends import BACKENDS, backends
from dsd_kernels.tasks import MODELS, DataError, missing_packages, parse_dataset
from dsd_kernels.training.arm import ALONE
from dsd_kernels.training.config import Config, defaults
from dsd_kernels.training.ranks import Ranks
from dsd_kernels.training.recipes import RecipeError, names, read

LARGEST = 2**31 - 1
MOST_ITERATIONS = 1000
Defaults = Mapping[str, Mapping[str, Any]]  # model -> what it has instead of `defaults`


def option(section: str, name: str, text: str, *, shown: str = "", **kwargs: Any) -> Callable[..., Any]:
    """An option whose default is only shown: what is not given comes from the model or from the checkpoint."""
    default = f"  [default: {shown}]" if shown else ""
    return click.option(name, cls=SectionOption, section=section, help=text + default, **{"default": None, **kwargs})


def by_model(field: str, instead: Defaults) -> str:
    """The defaults of a field in words: one for all models, or each with the models that have it."""
    values = {model: f"{instead.get(model, {}).get(field, defaults(model)[field]):g}" for model in MODELS}
    if len(set(values.values())) == 1:
        return values[MODELS[0]]
    having = {value: [model for model in MODELS if values[model] == value] for value in values.values()}
    return "; ".join(f"{value} for {', '.join(models)}" for value, models in having.items())


def joined(_: click.Context, __: click.Parameter, values: tuple[tuple[float, ...], ...]) -> tuple[float, ...] | None:
    return sum(values, ()) or None


def use_recipe(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """Let a recipe take the place of defaults; what is on the command line still goes first."""
    if name is None:
        return
    fields = [p.name for p in context.command.params if getattr(p, "section", "") in ("Task", "Phases", "Optimizer")]
    try:
        recipe = read(name, [field for field in fields if field and field != parameter.name])
    except RecipeError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    click.echo(f"Recipe: {recipe.pop('about', name)}")
    # as text, so that each value is converted and checked as if it stood on the command line
    context.default_map = {key: list(map(str, v)) if isinstance(v, list) else str(v) for key, v in recipe.items()}


def task_options(instead: Defaults) -> list[Callable[..., Any]]:
    return [
        option(
            "Task",
            "--model",
            "cnn: 8x8 images of handwritten digits (scikit-learn). lstm, rnn, transformer: characters of Python's own "
            "documentation. resnet18, resnet50, vgg16: images of your own.",
            type=click.Choice(MODELS),
            shown="cnn",
        ),
        option(
            "Task",
            "--dataset",
            "Your own data: imagefolder:PATH (a folder of images for each class, or train and val with such folders; "
            "needs Pillow) or text:PATH (a file, UTF-8).",
            metavar="KIND:PATH",
            shown="the model's, see --model",
        ),
        option(
            "Task",
            "--characters",
            "Use only so many of the first characters of the text; 0 uses all.",
            type=click.IntRange(0, LARGEST),
            metavar="N",
            shown=by_model("characters", instead),
        ),
        option(
            "Task",
            "--image-size",
            "Side of the images of an imagefolder, in pixels.",
            type=click.IntRange(8, 1024),
            metavar="PIXELS",
            shown="32 for cnn, 224 for resnet18, resnet50, vgg16",
        ),
        option(
            "Task",
            "--recipe",
            f"Take defaults from a recipe: {', '.join(names())}, or a TOML file of your own.",
            metavar="NAME|FILE",
            callback=use_recipe,
            is_eager=True,
            expose_value=False,
        ),
    ]


def phase_options(instead: Defaults) -> list[Callable[..., Any]]:
    def epochs(name: str, text: str) -> Callable[..., Any]:
        shown = by_model(name, instead)
        return option("Phases", f"--{name}", text, type=click.IntRange(0, LARGEST), metavar="EPOCHS", shown=shown)

    return [
        epochs("dense", "Length of the first dense phase."),
        epochs("sparse", "Length of the sparse phase: the smallest weights are pruned at its start and stay 0."),
        epochs("redense", "Length of the re-dense phase: pruned weights start again from 0."),
        option(
            "Phases",
            "--sparsity",
            "Fraction of the weights to prune, in [0, 1). One for each iteration: 0.5,0.25 or --sparsity twice.",
            type=Numbers(Number(below=1)),
            multiple=True,
            callback=joined,
            metavar="FRACTION",
            shown="0.5",
        ),
        option(
            "Phases",
            "--iterations",
            "How often sparse and re-dense follow the dense phase.",
            type=click.IntRange(1, MOST_ITERATIONS),
            metavar="N",
            shown="one per --sparsity",
        ),
        option(
            "Phases",
            "--lr-factors",
            "Multiply the learning rate: in dense, sparse and re-dense phases, or one for each of the 1 + 2N phases. "
            "Written 1,1,0.1 or --lr-factors once for each.",
            type=Numbers(Number()),
            multiple=True,
            callback=joined,
            metavar="FACTOR,...",
            shown="1,1,0.1",
        ),
        option(
            "Phases",
            "--distribution",
            "Of sparsity over the layers: the same in each; more in the larger ones (Erdos-Renyi kernel); or one "
            "threshold.",
            type=click.Choice(DISTRIBUTIONS),
            shown="uniform",
        ),
    ]


def optimizer_options(instead: Defaults) -> list[Callable[..., Any]]:
    return [
        option("Optimizer", "--lr", "Learning rate.", type=Number(exclusive=True), shown=by_model("lr", instead)),
        option("Optimizer", "--momentum", "In [0, 1).", type=Number(below=1), shown=by_model("momentum", instead)),
        option("Optimizer", "--nesterov/--no-nesterov", "Nesterov's momentum.", shown="no"),
        option("Optimizer", "--weight-decay", "L2 penalty.", type=Number(), shown=by_model("weight_decay", instead)),
        option(
            "Optimizer",
            "--mask-momentum",
            "Momentum of pruned weights: zero it, or keep it running as plain SGD would.",
            type=click.Choice(["zero", "keep"]),
            shown="zero",
        ),
        option(
            "Optimizer",
            "--batch-size",
            "Images, or windows of 64 characters.",
            type=click.IntRange(1, LARGEST),
            metavar="N",
            shown=by_model("batch_size", instead),
        ),
    ]


def machine_options(instead: Defaults) -> list[Callable[..., Any]]:
    return [
        option(
            "Machine", "--device", "cpu, cuda or cuda:N.", metavar="DEVICE", shown="cuda if there is one, otherwise cpu"
        ),
        option(
            "Machine",
            "--backend",
            "Code that updates and prunes; see dsd-kernels doctor.",
            type=click.Choice(BACKENDS),
            shown="the fastest available",
        ),
        option(
            "Machine",
            "--threads",
            "CPU threads. Networks this small gain nothing from more, and the last bits of results depend on it.",
            type=click.IntRange(1, LARGEST),
            metavar="N",
            shown=by_model("threads", instead),
        ),
    ]


def decorate(options: list[Callable[..., Any]]) -> Callable[..., Any]:
    """All options as one decorator, in the order in which they are to be listed."""
    return lambda function: reduce(lambda decorated, add: add(decorated), reversed(options), function)


def shared_options(instead: Defaults) -> Callable[..., Any]:
    """The options of a training, with the defaults that a command has instead of a model's own."""
    sections = (task_options, phase_options, optimizer_options, machine_options)
    return decorate([one for section in sections for one in section(instead)])


tensorboard_option = option(
    "Output",
    "--tensorboard",
    "Write curves for TensorBoard here, one run for each arm; they replace those of an older run. Needs tensorboard.",
    type=FilledPath(path_type=Path, file_okay=False),
    metavar="FOLDER",
)


def check_threads(given: dict[str, Any]) -> None:
    """Refuse what OpenMP dies of. A run from another machine is resumed with the threads that it began with."""
    n_cpus = os.cpu_count() or 1
    if given.get("threads", 1) > n_cpus:
        raise ValueError(f"--threads: expected 1 to {n_cpus}, the logical CPUs here, got {given['threads']}")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_here(command: str, config: Config, ranks: Ranks = ALONE) -> None:
    """Refuse packages, data, a device or a backend that are not here, before anything is trained or written."""
    if missing := missing_packages(config.model, config.dataset):
        what = " and ".join(missing)
        raise click.ClickException(f"{command} --model {config.model} needs {what}, which is not installed: {INSTALL}")
    try:
        _, path = parse_dataset(config.model, config.dataset)
    except DataError as error:
        raise click.UsageError(str(error)) from error
    if config.dataset and not Path(path).exists():
        raise click.UsageError(f"--dataset: {path} is not there")
    if not ranks.alone and config.device.startswith("cuda:"):
        raise click.UsageError(
            f"--device: expected cuda, of which each rank takes its own, or cpu, got {config.device!r}"
        )
    device = check_device(ranks.device(config.device))
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
