"""ZeroRedundancyOptimizer over MaskedSGD: each rank keeps momentum and masks of its share of the parameters."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dsd_kernels.optim import MaskedSGD

with warnings.catch_warnings():
    # torch's own, about its own use of TorchScript there
    warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer


class ZeroMaskedSGD(ZeroRedundancyOptimizer):
    """torch.distributed.optim.ZeroRedundancyOptimizer(optimizer_class=MaskedSGD), with masks.

    Args:
        params: parameters or groups, the same on every rank.
        options: process_group and parameters_as_bucket_view, as in torch; all others as in `MaskedSGD`.

    Raises:
        ValueError: overlap_with_ddp=True, which torch has for its own optimizers only; master_weights and
            stochastic_rounding, since one rank alone would know the weights to select by; what `MaskedSGD` raises.

    Notes:
        Plain ZeroRedundancyOptimizer steps a MaskedSGD well, but loads state around its `load_state_dict`: a state dict
        with masks is refused at the next step. State dicts of this class and those of MaskedSGD interchange both ways.
        Call `prune`, `set_masks` and `densify` on every rank, with the same arguments. Weights are the same on every
        rank, so each chooses the same masks by itself and keeps those of its share.
        A flow needs one MaskedSGD over all parameters, and refuses this class. Do not give it the `optim` inside: torch
        overwrites the groups of that at every step, the flow's learning rate factor with them.

    Source: Rajbhandari et al. 2020 (arXiv 1910.02054), stage 1; torch.distributed.optim.ZeroRedundancyOptimizer.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from dsd_kernels.integrations.zero import ZeroMaskedSGD
        >>> layer = torch.nn.Linear(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:  # a group of one rank
        ...     torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
        ...     optimizer = ZeroMaskedSGD(layer.parameters(), lr=0.1, momentum=0.9)
        ...     optimizer.prune(0.5)
        ...     torch.distributed.destroy_process_group()
        >>> int(optimizer.masks[layer.weight].sum())
        4
    """

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        groups = [_reiterable(item) for item in params]
        for given in (options, *(item for item in groups if isinstance(item, dict))):
            for name in ("master_weights", "stochastic_rounding"):
                if given.get(name):
                    raise ValueError(f"{name}: expected False, got {given[name]!r}: ranks could choose different masks")
        super().__init__(groups, optimizer_class=MaskedSGD, **options)

    def prune(self, sparsity: float | Mapping[Tensor, float], params: Tensor | Iterable[Tensor] | None = None) -> None:
        """As `MaskedSGD.prune`, over the parameters of all ranks."""
        chooser = self._of_all_ranks()
        chooser.prune(sparsity, params)
        self._keep_share(chooser.masks)

    def set_masks(self, masks: Mapping[Tensor, Tensor]) -> None:
        """As `MaskedSGD.set_masks`, over the parameters of all ranks."""
        chooser = self._of_all_ranks()
        chooser.set_masks(masks)
        self._keep_share(chooser.masks)

    def densify(self) -> None:
        """As `MaskedSGD.densify`, of all parameters."""
        self.optim.densify()

    @property
    def masks(self) -> dict[Tensor, Tensor]:
        """{parameter: bool mask}, of this rank's share."""
        return self.optim.masks

    def state_dict(self) -> dict[str, Any]:
        """The state of all ranks, as `MaskedSGD.state_dict` has it, on the rank that `consolidate_state_dict` chose."""
        state_dict: dict[str, Any] = super().state_dict()
        for group in state_dict["param_groups"]:
            group["n_masked"] = sum("mask" in state_dict["state"].get(i, {}) for i in group["params"])
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of all ranks, of which each keeps its share, masks included.

        Raises:
            ValueError: groups that do not match; momentum or masks that do not, on the rank whose share they are.
        """
        self.optim.load_state_dict(self._share(state_dict))
        Optimizer.load_state_dict(self, {**state_dict, "state": {}})  # the groups

    def _share(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """What the optimizer of this rank loads."""
        saved_groups = state_dict["param_groups"]
        expected, got = ([len(group["params"]) for group in groups] for groups in (self.param_groups, saved_groups))
        if expected != got:
            raise ValueError(f"state_dict: expected param_groups of {expected} parameters, got {got}")
        index = {
            p: i
            for saved, group in zip(saved_groups, self.param_groups, strict=True)
            for i, p in zip(saved["params"], group["params"], strict=True)
        }
        groups = []
        for saved, group in zip(saved_groups, self.optim.param_groups, strict=True):
            options = {key: value for key, value in saved.items() if key != "n_masked"}  # counts those of all ranks
            groups.append({**options, "params": [index[p] for p in group["params"]]})
        own = {i for group in groups for i in group["params"]}
        state = {i: entry for i, entry in state_dict["state"].items() if i in own}
        return {"state": state, "param_groups": groups}

    def _of_all_ranks(self) -> MaskedSGD:
        """An optimizer to choose masks with, over the weights, which every rank has all of."""
        return MaskedSGD([{"params": group["params"]} for group in self.param_groups])

    def _keep_share(self, masks: Mapping[Tensor, Tensor]) -> None:
        own = {p for group in self.optim.param_groups for p in group["params"]}
        self.optim.set_masks({p: mask for p, mask in masks.items() if p in own})


def _reiterable(item: object) -> object:
    """A group whose parameters are a generator, which torch would exhaust and then find empty, with a list of them."""
    if isinstance(item, dict) and not isinstance(item.get("params"), Tensor | None):
        return {**item, "params": list(item["params"])}
    return item
