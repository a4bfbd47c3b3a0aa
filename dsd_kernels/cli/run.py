"""A run of `train`: DSD, then the same training without pruning; both can stop after any batch and go on bitwise."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from dsd_kernels.tasks import Task
from dsd_kernels.training.arm import Arm, Observer
from dsd_kernels.training.build import build_dsd
from dsd_kernels.training.config import Config


class Run:
    """The two arms, one after the other. Only `sparsity` differs, so the mask is the whole difference."""

    def __init__(self, config: Config, task: Task) -> None:
        self.config, self.task = config, task.to(config.device)
        self.dsd = self._arm("dsd", config.sparsity, keep_history=True)
        self.baseline = self._arm("baseline", 0.0)

    def _arm(self, name: str, sparsity: Sequence[float] | float, *, keep_history: bool = False) -> Arm:
        config = self.config
        return Arm(
            name,
            self.task,
            partial(build_dsd, config, sparsity=sparsity),
            seed=config.seed,
            batch_size=config.batch_size,
            device=config.device,
            keep_history=keep_history,
        )

    def __iter__(self) -> Iterator[Arm]:
        return iter((self.dsd, self.baseline))

    @property
    def finished(self) -> bool:
        return all(arm.finished for arm in self)

    @property
    def position(self) -> str:
        """Where the run stands, in words."""
        if self.finished:
            return "finished"
        arm = self.baseline if self.dsd.finished else self.dsd
        return (
            f"{arm.name}, {arm.stage}, epoch {arm.epoch + 1} of {arm.n_epochs}, "
            f"{arm.batch} of {arm.n_batches} batches done"
        )

    def train(self, observer: Observer, save: Callable[[], None], stop: Callable[[], bool]) -> bool:
        """Train to the end; `save` is called after every epoch, and when `stop` says so. False if it was stopped."""
        for arm in self:
            while not arm.finished:
                completed = arm.train_epoch(observer, stop)
                save()
                if not completed:
                    return False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only, so that it loads with `weights_only=True`."""
        on_gpu = self.dsd.device.type == "cuda"
        return {
            "config": self.config.to_dict(),
            "position": self.position,
            "data_sha256": self.task.sha256,
            "dimensions": self.task.dimensions,
            "arms": {arm.name: arm.state_dict() for arm in self},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.dsd.device) if on_gpu else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a state stands.

        Raises:
            Whatever a state of another structure provokes: call it within `checkpoint.fitting`.
        """
        for arm in self:
            arm.load_state_dict(state["arms"][arm.name])
        if self.position != state["position"]:
            raise ValueError(f"stands at {self.position!r}, not at {state['position']!r}")
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.dsd.device)
