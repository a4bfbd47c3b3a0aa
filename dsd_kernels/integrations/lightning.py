"""Lightning: a callback that drives a flow, and stops and resumes with the Trainer."""

# ruff: noqa: ARG002 - the signatures of callbacks are not ours

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dsd_kernels.flows import Flow
from dsd_kernels.integrations.following import Follower
from dsd_kernels.optim import MaskedSGD

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("dsd_kernels.integrations.lightning needs Lightning: pip install lightning") from error


class FlowCallback(Callback):
    """Drives a flow in a Lightning Trainer: after each epoch or each optimizer step, as the flow's unit says.

    Args:
        make_flow: called as make_flow(optimizer, module) when fitting starts; returns the flow.

    Raises:
        TypeError: make_flow is not callable, or returns no flow.
        ValueError: a Trainer that has not exactly one MaskedSGD; a checkpoint that was written without this callback.

    Notes:
        From the start of fitting on, `callback.flow` is the flow. Its state is in the Trainer's checkpoints, the masks
        are there with the optimizer's state; a resumed run is bitwise the one that never stopped, in any phase.
        Steps are those of `trainer.global_step`: with gradient accumulation, fewer than batches.
        Every `fit` makes its optimizer anew, so it makes its flow anew too.

    Example:
        >>> from dsd_kernels.flows import DSD
        >>> from dsd_kernels.integrations.lightning import FlowCallback
        >>> def make_flow(optimizer, module):
        ...     return DSD(optimizer, module, dense=2, sparse=2, redense=2, sparsity=0.5)
        >>> callback = FlowCallback(make_flow)  # for Trainer(callbacks=[callback])
    """

    def __init__(self, make_flow: Callable[[MaskedSGD, nn.Module], Flow]) -> None:
        if not callable(make_flow):
            raise TypeError(f"make_flow: expected a function of optimizer and module, got {make_flow!r}")
        self._make_flow = make_flow
        self._follower: Follower | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def flow(self) -> Flow | None:
        """The flow of the current or the last `fit`; None before the first."""
        return None if self._follower is None else self._follower.flow

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what an earlier run was to be resumed from."""
        self._saved = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the saved state for the flow, which is yet to be made."""
        if trainer.state.fn != "fit":
            return
        self._saved = checkpoint["callbacks"].get(self.state_key)
        if self._saved is None:
            raise ValueError(f"checkpoint: expected the state of {self.state_key}, but it was written without")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the flow: the optimizer exists, and its saved state, with the masks, is loaded after this."""
        weights = [p.detach().clone() for p in pl_module.parameters()] if self._saved else []
        flow = self._make_flow(_masked_sgd(trainer), pl_module)
        self._follower = Follower(flow, epochs=trainer.current_epoch, steps=trainer.global_step)
        if self._saved:  # Lightning has loaded the weights already, and a flow whose first phase is sparse prunes them
            with torch.no_grad():
                for p, weight in zip(pl_module.parameters(), weights, strict=True):
                    p.copy_(weight)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to where the saved flow stood."""
        if self._saved:
            self._following.load_state_dict(self._saved)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Catch up on an epoch of which the checkpoint had the last batch but not the end."""
        self._following.follow(epochs=trainer.current_epoch, steps=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count optimizer steps."""
        self._following.follow(epochs=trainer.current_epoch, steps=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch, which Lightning does only after its callbacks."""
        self._following.follow(epochs=trainer.current_epoch + 1, steps=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What the Trainer saves."""
        return {} if self._follower is None else self._follower.state_dict()

    @property
    def _following(self) -> Follower:
        assert self._follower is not None, "made in on_fit_start"
        return self._follower


def _masked_sgd(trainer: Trainer) -> MaskedSGD:
    found = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, MaskedSGD)]
    if len(found) != 1:
        names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
        raise ValueError(f"configure_optimizers: expected exactly one MaskedSGD, got {names or 'no optimizer'}")
    return found[0]
