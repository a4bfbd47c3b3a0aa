"""Half-precision weights stored with more care than torch.optim.SGD gives them, where their group asks for it.

Three options of a group, each for its bfloat16 and float16 parameters only: momentum in float32, float32 master weights
from which the parameter is rounded, and stochastic rounding.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.ops.checks import HALF_DTYPES
from dsd_kernels.ops.layout import restride

MASTER_WEIGHT = "master_weight"  # its key in `optimizer.state[p]`
HALF_OPTIONS = ("momentum_dtype", "master_weights", "stochastic_rounding")


def is_wide(group: Mapping[str, Any]) -> bool:
    """Whether the group asks for what torch's own loop cannot do."""
    return any(group[name] for name in HALF_OPTIONS)


def has_master(group: Mapping[str, Any], p: Tensor) -> bool:
    return bool(group["master_weights"]) and p.dtype in HALF_DTYPES


def momentum_dtype(group: Mapping[str, Any], p: Tensor) -> torch.dtype:
    """The dtype of a parameter's momentum; that of master weights is theirs."""
    wide = group["master_weights"] or group["momentum_dtype"] is not None
    return torch.float32 if wide and p.dtype in HALF_DTYPES else p.dtype


def master_of(p: Tensor, dense: Tensor, entry: Mapping[str, Any]) -> Tensor:
    """The master of a parameter, laid out as `dense`, the parameter itself or its dense copy; a new one if missing."""
    master: Tensor | None = entry.get(MASTER_WEIGHT)
    if master is None:
        return torch.empty_like(dense, dtype=torch.float32, requires_grad=False).copy_(dense)
    if master.shape != p.shape:
        raise ValueError(
            f"{MASTER_WEIGHT}: expected a parameter of shape {tuple(master.shape)}, as it was when it got its "
            f"master weights, got {tuple(p.shape)}"
        )
    return restride(master, dense)


def seed_for(group: dict[str, Any], device: torch.device, ordinal: int) -> Tensor:
    """The seed of one op call: that of the group's step, moved apart from the seeds of the step's other calls."""
    return (_seed(group) + (ordinal << 40)).to(device, non_blocking=True)


def advance_seed(group: dict[str, Any], lr: float | Tensor, found_inf: Tensor | None) -> None:
    """The next step's seed, on the parameters' device, for a captured graph to advance; a skipped step keeps its own.

    A step with learning rate 0 draws nothing: torch.distributed.checkpoint takes such a step to fill an optimizer.
    """
    on_host = not isinstance(lr, Tensor) or (lr.device.type == "cpu" and not torch.compiler.is_compiling())
    if on_host and lr == 0:
        return
    seed = _seed(group)
    seed.add_(1 if found_inf is None else (found_inf == 0).reshape(()).to(seed.device, seed.dtype))


def _seed(group: dict[str, Any]) -> Tensor:
    """The group's seed as a tensor where its parameters are; it is an integer at first, and where somebody set one."""
    home = group["params"][0].device
    if not isinstance(group["rounding_seed"], Tensor):
        group["rounding_seed"] = torch.tensor(group["rounding_seed"], dtype=torch.int64, device="cpu")
    if group["rounding_seed"].device != home:
        group["rounding_seed"] = group["rounding_seed"].to(home, non_blocking=True)
    return group["rounding_seed"]
