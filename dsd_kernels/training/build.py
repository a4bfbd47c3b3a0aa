"""Optimizer and flow of a config."""

from collections.abc import Sequence

from torch import nn

from dsd_kernels.flows.dsd import DSD
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.training.config import Config


def build_optimizer(config: Config, model: nn.Module) -> MaskedSGD:
    """The optimizer of a config, over all parameters of the model, which can name them in errors."""
    return MaskedSGD(
        model.named_parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        mask_momentum=config.mask_momentum,
    )


def build_dsd(
    config: Config, model: nn.Module, sparsity: Sequence[float] | float, selection: str = "magnitude", seed: int = 0
) -> DSD:
    """DSD as the config describes it; with sparsity 0, the same learning rates without pruning."""
    return DSD(
        build_optimizer(config, model),
        model,
        dense=config.dense,
        sparse=config.sparse,
        redense=config.redense,
        sparsity=sparsity,
        iterations=config.iterations,
        lr_factors=config.lr_factors,
        distribution=config.distribution,
        selection=selection,
        seed=seed,
    )
