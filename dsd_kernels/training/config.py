"""The settings of a run: every one resolved to a value, so that the checkpoint says all that the run depends on."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from dsd_kernels.ops.backends import BACKENDS
from dsd_kernels.tasks import MODELS, TEXT_MODELS

IMAGES, TEXT = (20, 12, 12), (4, 3, 3)  # epochs
EPOCHS = {model: TEXT if model in TEXT_MODELS else IMAGES for model in MODELS}
LEARNING_RATE = {**dict.fromkeys(MODELS, 0.02), "lstm": 2.0, "rnn": 0.2, "transformer": 0.1}
WEIGHT_DECAY = {model: 0.0 if model in TEXT_MODELS else 5e-4 for model in MODELS}

VGG_LEAST_SIZE = 32  # it halves the side five times
BATCH_SIZE = {"transformer": 8}
OPTIONAL = ("backend", "dataset")  # strings, or None


@dataclass(frozen=True)
class Config:
    """What `train` was asked to do; its fields are the command's options."""

    model: str
    dataset: str | None
    characters: int
    image_size: int
    dense: int
    sparse: int
    redense: int
    sparsity: tuple[float, ...]
    iterations: int
    lr: float
    lr_factors: tuple[float, ...]
    momentum: float
    nesterov: bool
    weight_decay: float
    batch_size: int
    distribution: str
    mask_momentum: str
    seed: int
    device: str
    backend: str | None
    threads: int

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The settings that a checkpoint recorded.

        Raises:
            KeyError, TypeError, ValueError: they are not those of this version.
        """
        fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        config = cls(**fields)
        if config.backend not in (None, *BACKENDS):
            raise ValueError(f"unknown backend {config.backend!r}")
        expected = {**defaults(config.model), "device": "cpu", "iterations": 1}
        for name, value in asdict(config).items():
            if type(value) is not type(expected[name]) and not (name in OPTIONAL and isinstance(value, str)):
                raise TypeError(f"{name} is {value!r}")
        return config


def defaults(model: str) -> dict[str, Any]:
    """What every option is when it is not given, but for the device, which depends on the machine."""
    dense, sparse, redense = EPOCHS[model]
    return {
        "model": model,
        "dataset": None,
        "characters": 0,
        "image_size": 0,
        "dense": dense,
        "sparse": sparse,
        "redense": redense,
        "sparsity": (0.5,),
        "lr": LEARNING_RATE[model],
        "lr_factors": (1.0, 1.0, 0.1),
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": WEIGHT_DECAY[model],
        "batch_size": BATCH_SIZE.get(model, 32),
        "distribution": "uniform",
        "mask_momentum": "zero",
        "seed": 0,
        "backend": None,
        "threads": 1,
    }


def new_config(given: dict[str, Any], device: str) -> Config:
    """The options given, completed by the model's defaults.

    Raises:
        ValueError: options that do not fit together.
    """
    values = {**defaults(given.get("model", "cnn")), "device": device, **given}
    iterations = values.setdefault("iterations", len(values["sparsity"]))
    values["sparsity"] = _per_iteration(values["sparsity"], iterations)
    config = Config(**values)
    _check_together(config)
    return config


RESUMED = "--resume: contradicts the run to resume: "


def resumed_config(config: Config, given: dict[str, Any], begun: str = RESUMED) -> Config:
    """The settings that a run or a study began with; options given beside them may only repeat them.

    Args:
        config: the recorded settings.
        given: the options.
        begun: how the error begins.

    Raises:
        ValueError: options that contradict them, by name.
    """
    if "sparsity" in given:
        given = {**given, "sparsity": _per_iteration(given["sparsity"], config.iterations)}
    wrong = [
        f"{_option(name)} {_shown(value)} (it began with {_shown(getattr(config, name))})"
        for name, value in given.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise ValueError(f"{begun}{', '.join(wrong)}; leave that out")
    return config


def _check_together(config: Config) -> None:
    iterations = config.iterations
    if len(config.sparsity) != iterations:
        n = len(config.sparsity)
        raise ValueError(f"--sparsity: expected one value, or one for each of {iterations} iterations, got {n}")
    if len(config.lr_factors) not in (3, 1 + 2 * iterations):
        several = f", or one for each of {1 + 2 * iterations} phases" if iterations > 1 else ""
        raise ValueError(f"--lr-factors: expected 3 values{several}, got {len(config.lr_factors)}")
    if math.isinf(config.lr * max(config.lr_factors)):
        raise ValueError(
            f"--lr-factors: expected a finite product with --lr, got {config.lr:g} * {max(config.lr_factors):g}"
        )
    if config.dense + iterations * (config.sparse + config.redense) == 0:
        raise ValueError("--dense, --sparse, --redense: expected at least one epoch in all, got 0")
    if config.characters and config.model not in TEXT_MODELS:
        raise ValueError(
            f"--characters: {config.model} reads no text; expected one of {', '.join(TEXT_MODELS)} beside it"
        )
    if config.image_size and config.model in TEXT_MODELS:
        raise ValueError(f"--image-size: {config.model} reads no images; leave that out")
    if config.image_size and config.model == "cnn" and config.dataset is None:
        raise ValueError("--image-size: the digits have 8x8 pixels; expected --dataset imagefolder:PATH beside it")
    if config.model == "vgg16" and 0 < config.image_size < VGG_LEAST_SIZE:
        raise ValueError(f"--image-size: expected {VGG_LEAST_SIZE} or more for vgg16, got {config.image_size}")
    if config.nesterov and config.momentum == 0:
        raise ValueError("--nesterov: expected a --momentum above 0 beside it, got 0")


def _per_iteration(sparsity: tuple[float, ...], iterations: int) -> tuple[float, ...]:
    return sparsity * iterations if len(sparsity) == 1 else sparsity


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _shown(value: object) -> str:
    if value is None:
        return "the default"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
