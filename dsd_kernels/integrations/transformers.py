"""Hugging Face Trainer: a callback that drives a flow, and stops and resumes with the Trainer."""

# ruff: noqa: ARG002 - the signatures of callbacks are not ours

from typing import Any, cast

from dsd_kernels.flows import Flow
from dsd_kernels.integrations.following import Follower

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "dsd_kernels.integrations.transformers needs Transformers: pip install transformers accelerate"
    ) from error

KEY = "dsd_kernels.flow"


class FlowCallback(TrainerCallback):
    """Drives a flow in a Hugging Face Trainer: after each epoch or each optimizer step, as the flow's unit says.

    Args:
        flow: made from the optimizer and the model that the Trainer gets, before it gets them.

    Raises:
        TypeError: a flow that is none.
        ValueError: a flow whose state has tensors (`Flow.keeps_tensors`), which a JSON file cannot hold; resuming from
            a checkpoint that was written without this callback, or with another schedule.

    Notes:
        The flow's state is in `trainer_state.json` of each checkpoint, the masks are in `optimizer.pt`; a resumed run
        is bitwise the one that never stopped, in any phase.
        A dataset without a length has no epochs of a known length: let the flow count in steps there.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import DSD
        >>> from dsd_kernels.integrations.transformers import FlowCallback
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1)
        >>> flow = DSD(optimizer, model, dense=2, sparse=2, redense=2, sparsity=0.5)
        >>> callback = FlowCallback(flow)  # for Trainer(model, optimizers=(optimizer, None), callbacks=[callback])
    """

    def __init__(self, flow: Flow) -> None:
        self._follower = Follower(flow, epochs=0, steps=0)
        if flow.keeps_tensors:
            raise ValueError(
                f"flow: expected one whose state is plain numbers, for trainer_state.json, got {flow!r}; "
                "ParallelGaP in one process and regrown='restore' keep tensors"
            )

    @property
    def flow(self) -> Flow:
        """The flow that is driven."""
        return self._follower.flow

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start where the flow stands, or go to where that of the checkpoint stood."""
        saved = _callback_states(state).get(KEY)
        if saved is None and state.global_step > 0:
            raise ValueError(f"checkpoint: expected the state of a FlowCallback ({KEY!r}), but it was written without")
        self._follower = Follower(self.flow, epochs=0, steps=0)
        if saved is not None:
            self._follower.load_state_dict(saved)
        self._follow(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count an optimizer step, and with the last one of an epoch the epoch: before the Trainer saves."""
        self._follow(state)

    def _follow(self, state: TrainerState) -> None:
        self._follower.follow(epochs=int(state.epoch or 0), steps=state.global_step)
        _callback_states(state)[KEY] = self._follower.state_dict()


def _callback_states(state: TrainerState) -> dict[str, Any]:
    """What the Trainer saves for callbacks, by name; declared as a list, which it is only at construction."""
    return cast("dict[str, Any]", state.stateful_callbacks)
