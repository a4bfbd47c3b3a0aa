"""A flow that follows the counters of somebody else's training loop."""

from collections.abc import Mapping
from typing import Any

from dsd_kernels.flows import Flow


class Follower:
    """Steps a flow to where a loop's own counters of epochs and steps stand.

    Events are not counted: from a checkpoint that was written between the last batch of an epoch and its end, Lightning
    and the Hugging Face Trainer go on in the next epoch, and never announce the end of the one before.

    Args:
        flow: the flow to step.
        epochs, steps: where the loop stands now; the flow does not catch up on them.

    Raises:
        TypeError: a flow that is none.
    """

    def __init__(self, flow: Flow, *, epochs: int, steps: int) -> None:
        if not isinstance(flow, Flow):
            raise TypeError(f"flow: expected a dsd_kernels.flows.Flow, got {type(flow).__name__}")
        self.flow = flow
        self._start = flow.position - self._count(epochs, steps)

    def follow(self, *, epochs: int, steps: int) -> None:
        """Step the flow until it has done what the loop has done since it was followed."""
        while self.flow.position < self._start + self._count(epochs, steps) and not self.flow.finished:
            self.flow.step()

    def _count(self, epochs: int, steps: int) -> int:
        return epochs if self.flow.unit == "epoch" else steps

    def state_dict(self) -> dict[str, Any]:
        """The flow's state, and where it began to follow, in plain types."""
        return {"start": self._start, "flow": self.flow.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another follower stood; raises what `Flow.load_state_dict` raises."""
        self.flow.load_state_dict(state_dict["flow"])
        self._start = int(state_dict["start"])
