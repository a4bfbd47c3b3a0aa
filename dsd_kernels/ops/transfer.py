"""Host values on a device, without the host waiting for them to arrive."""

import torch
from torch import Tensor


def on_device(host: Tensor, device: torch.device) -> Tensor:
    """The host's tensor on a device, from pinned memory; one that is not the host's, or is meant for it, as it is."""
    if device.type == "cuda" and host.device.type == "cpu":
        return host.pin_memory().to(device, non_blocking=True)
    return host
