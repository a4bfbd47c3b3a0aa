"""The values that weights had before they were pruned, kept for phases that restore them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dsd_kernels.optim import MaskedSGD
from dsd_kernels.precision import MASTER_WEIGHT


class PrunedValues:
    """A copy of every masked parameter, of which only the pruned weights matter; of its master where it has one."""

    def __init__(self, optimizer: MaskedSGD) -> None:
        self.optimizer = optimizer
        self.kept: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def remember(self, parameters: Iterable[Tensor]) -> None:
        """Copy parameters that are about to be pruned; what their masks have pruned already keeps its older value."""
        masks = self.optimizer.masks if self.kept else {}
        for p in parameters:
            value = self._weight(p).detach()
            has_older = p in self.kept and p in masks
            self.kept[p] = torch.where(masks[p], value, self.kept[p]) if has_older else value.clone()

    @torch.no_grad()
    def restore(self, parameters: Iterable[Tensor]) -> None:
        """Put the values back that these parameters' masks have pruned."""
        masks = self.optimizer.masks if self.kept else {}
        for p in parameters:
            if (value := self.kept.pop(p, None)) is not None and p in masks:
                self._put(self._weight(p), masks[p], value)
                self._put(p, masks[p], value)

    @staticmethod
    def _put(tensor: Tensor, mask: Tensor, value: Tensor) -> None:
        tensor.copy_(torch.where(mask, tensor, value.to(tensor.dtype)))

    def forget(self, parameters: Iterable[Tensor]) -> None:
        """Drop the values of parameters that are dense again."""
        for p in parameters:
            self.kept.pop(p, None)

    def _weight(self, p: Tensor) -> Tensor:
        master: Tensor = self.optimizer.state.get(p, {}).get(MASTER_WEIGHT, p)
        return master
