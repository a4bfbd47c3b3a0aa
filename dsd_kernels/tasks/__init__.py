"""What is trained: networks with real data that needs no network, or with the user's own."""

import importlib.util
from pathlib import Path

from torch import nn

from dsd_kernels.tasks.digits import digits
from dsd_kernels.tasks.images import image_task
from dsd_kernels.tasks.networks import NETWORKS
from dsd_kernels.tasks.task import DataError, Task, evaluate, loss_of
from dsd_kernels.tasks.text import documentation, read_text, text_task

TEXT_MODELS = ("lstm", "rnn", "transformer")
IMAGENET_MODELS = ("resnet18", "resnet50", "vgg16")
MODELS = ("cnn", *TEXT_MODELS, *IMAGENET_MODELS)
IMAGE_SIZE = {"cnn": 32, **dict.fromkeys(IMAGENET_MODELS, 224)}

__all__ = ["MODELS", "DataError", "Task", "evaluate", "load", "loss_of", "network", "parse_dataset"]


def load(model: str, dataset: str | None = None, *, characters: int = 0, image_size: int = 0) -> Task:
    """The task of a model: on its own data, or on the user's.

    Args:
        model: one of `MODELS`.
        dataset: "imagefolder:PATH" or "text:PATH". Default None: digits for the CNN, Python's documentation for the
            text networks.
        characters: use only so many of the first characters of a text. Default 0, all.
        image_size: side of the images of an imagefolder, in pixels. Default 0: 32 for the CNN, 224 for the others.

    Raises:
        DataError: the data cannot be used, or are not of the model's kind.
    """
    kind, path = parse_dataset(model, dataset)
    if kind == "imagefolder":
        return image_task(model, path, image_size or IMAGE_SIZE[model])
    if kind == "text":
        return text_task(model, read_text(path), f"text of {path}", characters)
    if model in TEXT_MODELS:
        return text_task(model, documentation(), "Python's documentation (pydoc_data.topics)", characters)
    return digits()


def parse_dataset(model: str, dataset: str | None) -> tuple[str, Path]:
    """The kind of a dataset ("" for the model's own) and its path.

    Raises:
        DataError: another form, a kind that the model cannot read, or a model without data of its own.
    """
    expected = "text" if model in TEXT_MODELS else "imagefolder"
    if dataset is None:
        if model in IMAGENET_MODELS:
            raise DataError(f"{model} has no data of its own here: give --dataset imagefolder:PATH")
        return "", Path()
    kind, _, path = dataset.partition(":")
    if kind != expected or not path:
        raise DataError(f"--dataset: expected {expected}:PATH for {model}, got {dataset!r}")
    return kind, Path(path)


def network(model: str, dimensions: dict[str, int]) -> nn.Module:
    """The network of a model, of a task's `dimensions`; needs no data."""
    return NETWORKS[model](**dimensions)


def missing_packages(model: str, dataset: str | None) -> list[str]:
    """Packages that a task needs and that are not installed."""
    needs = {"matplotlib": "matplotlib"}
    if model == "cnn" and dataset is None:
        needs["sklearn"] = "scikit-learn"
    return [package for module, package in needs.items() if importlib.util.find_spec(module) is None]
