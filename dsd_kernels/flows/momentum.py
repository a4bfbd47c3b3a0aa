"""What happens to momentum where a phase begins: the policies of `Phase`."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from dsd_kernels.optim import MaskedSGD


def apply_policy(optimizer: MaskedSGD, policy: str, masks_before: Mapping[Tensor, Tensor]) -> None:
    """Zero what the policy says, in place, after the masks have changed from `masks_before`."""
    if policy == "zero_all":
        for _, buffer in _momentum_buffers(optimizer):
            buffer.zero_()
    elif policy == "zero_regrown":
        _zero_regrown(optimizer, masks_before)


def _zero_regrown(optimizer: MaskedSGD, masks_before: Mapping[Tensor, Tensor]) -> None:
    masks_now = optimizer.masks
    for parameter, buffer in _momentum_buffers(optimizer):
        if parameter in masks_before:
            regrown = ~masks_before[parameter]
            if parameter in masks_now:
                regrown &= masks_now[parameter]
            buffer.masked_fill_(regrown, 0.0)


def _momentum_buffers(optimizer: MaskedSGD) -> Iterator[tuple[Tensor, Tensor]]:
    for parameter, state in optimizer.state.items():
        if state.get("momentum_buffer") is not None:
            yield parameter, state["momentum_buffer"]
