"""The shapes that are measured: those of real networks, written by formula, and those of a user's own model."""

import importlib
import sys
from collections.abc import Iterable
from math import prod

from torch import Tensor, nn

Shape = tuple[int, ...]


def resnet50_shapes() -> list[Shape]:
    """The 161 parameters of ResNet-50, in the order of torchvision's `resnet50().parameters()`."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, n_blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(n_blocks):
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:  # the shortcut changes the number of channels
                convolutions.append((4 * width, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]  # with the weight and bias of its batch norm
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def gpt2_shapes(width: int = 768, n_layers: int = 12, vocabulary: int = 50_257, context: int = 1024) -> list[Shape]:
    """The 148 parameters of GPT-2 small, whose head is tied to the token embedding (Radford et al. 2019)."""
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *n_layers * [*norm, *attention, *norm, *mlp], *norm]


def lstm_shapes(width: int = 650, n_layers: int = 2, vocabulary: int = 10_000) -> list[Shape]:
    """The 11 parameters of the medium LSTM language model of Zaremba et al. 2014, as torch.nn.LSTM holds them."""
    layer: list[Shape] = [(4 * width, width), (4 * width, width), (4 * width,), (4 * width,)]
    return [(vocabulary, width), *n_layers * layer, (vocabulary, width), (vocabulary,)]


INPUTS: dict[str, list[Shape]] = {
    "1e3": [(10, 100)],
    "1e4": [(100, 100)],
    "1e5": [(100, 1_000)],
    "1e6": [(1_000, 1_000)],
    "1e7": [(1_000, 10_000)],
    "1e8": [(10_000, 10_000)],
    "1e9": [(10_000, 100_000)],
    "resnet50": resnet50_shapes(),
    "gpt2": gpt2_shapes(),
    "lstm": lstm_shapes(),
    "tiny": [(8, 8)] * 161,
    "thousand": [(100, 100)] * 1_000,  # as many weights as 1e7 has
}
LABELS = {
    "resnet50": "ResNet-50",
    "gpt2": "GPT-2 small",
    "lstm": "LSTM",
    "tiny": "161 tiny",
    "thousand": "1,000 x 1e4",
    "cnn": "CNN",
}


def n_weights(shapes: Iterable[Shape]) -> int:
    return sum(map(prod, shapes))


def label(inputs: str) -> str:
    return LABELS.get(inputs, inputs)


def model_shapes(path: str) -> list[Shape]:
    """The shapes that a user's own model trains.

    Args:
        path: "module:callable"; called without arguments, it returns a model, or its parameters.

    Raises:
        ValueError: it cannot be imported or called, or what it returns trains nothing.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"--model: expected module:callable, got {path!r}")
    if "" not in sys.path:  # a command that is installed does not look into the current folder
        sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:  # whatever their code raises
        raise ValueError(f"--model: {path!r} failed: {type(error).__name__}: {error}") from error
    return _trained(path, made.parameters() if isinstance(made, nn.Module) else made)


def _trained(path: str, params: object) -> list[Shape]:
    tensors = list(params) if isinstance(params, Iterable) else []
    if not tensors or not all(isinstance(p, Tensor) for p in tensors):
        raise ValueError(f"--model: expected {path!r} to return a model or its parameters, got {type(params).__name__}")
    shapes = [tuple(p.shape) for p in tensors if p.requires_grad and p.numel()]
    if not any(len(shape) >= 2 for shape in shapes):
        raise ValueError(f"--model: {path!r} trains no parameter of two or more dimensions, so there is none to mask")
    return shapes
