"""Half-precision weights stored with more care than torch.optim.SGD gives them, where their group asks for it.

Three options of a group, each for its bfloat16 and float16 parameters only: momentum in float32, float32 master weights
from which the parameter is rounded, and stochastic rounding.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.ops.checks import HALF_DTYPES
from dsd_kernels.ops.layout import restride

MASTER_WEIGHT = "master_weight"  # its key in `optimizer.state[p]`


def is_wide(group: Mapping[str, Any]) -> bool:
    """Whether the group asks for what torch's own loop cannot do."""
    return bool(group["master_weights"] or group["stochastic_rounding"]) or group["momentum_dtype"] is not None


def has_master(group: Mapping[str, Any], p: Tensor) -> bool:
    return bool(group["master_weights"]) and p.dtype in HALF_DTYPES


def momentum_dtype(group: Mapping[str, Any], p: Tensor) -> torch.dtype:
    """The dtype of a parameter's momentum; that of master weights is theirs."""
    wide = group["master_weights"] or group["momentum_dtype"] is not None
    return torch.float32 if wide and p.dtype in HALF_DTYPES else p.dtype


class MasterWeights:
    """The float32 weights in `state[p]["master_weight"]`, kept in step with parameters that others write too.

    A parameter is compared with its master only when its version counter shows that somebody else wrote it, or may
    have: after a checkpoint was loaded, or an average swapped in. Where the two differ, the parameter is right.
    """

    def __init__(self) -> None:
        self._versions: dict[Tensor, int] = {}  # of the parameters, as our own writes left them

    def current(self, p: Tensor, dense: Tensor, entry: Mapping[str, Any]) -> Tensor:
        """The master of a parameter, laid out as `dense`, the parameter itself or its dense copy; made if missing."""
        master: Tensor | None = entry.get(MASTER_WEIGHT)
        if master is None:
            return torch.empty_like(dense, dtype=torch.float32, requires_grad=False).copy_(dense)
        if master.shape != p.shape:
            raise ValueError(
                f"{MASTER_WEIGHT}: expected a parameter of shape {tuple(master.shape)}, as it was when it got its "
                f"master weights, got {tuple(p.shape)}"
            )
        master = restride(master, dense)
        if torch.compiler.is_compiling() or self._versions.get(p) != p._version:
            # by their bits: comparing values, torch.compile leaves the rounding out
            same = master.to(p.dtype).view(torch.int16) == p.view(torch.int16)
            master.copy_(torch.where(same, master, p.float()))
        return master

    def wrote(self, params: Iterable[Tensor]) -> None:
        """The parameters are their rounded masters now."""
        if not torch.compiler.is_compiling():
            self._versions.update((p, p._version) for p in params)

    def untouched(self, params: Iterable[Tensor]) -> bool:
        """Whether nobody else wrote the parameters since."""
        return all(self._versions.get(p) == p._version for p in params)


def seed_for(group: dict[str, Any], device: torch.device, ordinal: int) -> Tensor:
    """The seed of one op call: that of the group's step, moved apart from the seeds of the step's other calls."""
    home = group["params"][0].device
    if group["rounding_seed"].device != home:  # the model was moved, or a state dict was loaded
        group["rounding_seed"] = group["rounding_seed"].to(home)
    return (group["rounding_seed"] + (ordinal << 40)).to(device)


def advance_seed(group: Mapping[str, Any], lr: float | Tensor, found_inf: Tensor | None) -> None:
    """The next step's seed, on the seed's device so that a captured graph advances it; a skipped step keeps its own.

    A step with learning rate 0 draws nothing: torch.distributed.checkpoint takes such a step to fill an optimizer.
    """
    on_host = not isinstance(lr, Tensor) or (lr.device.type == "cpu" and not torch.compiler.is_compiling())
    if on_host and lr == 0:
        return
    seed = group["rounding_seed"]
    seed.add_(1 if found_inf is None else (found_inf == 0).reshape(()).to(seed.device, seed.dtype))
