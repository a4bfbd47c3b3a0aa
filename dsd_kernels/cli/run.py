"""A run of `train`: DSD, then the same training without pruning; both can stop after any batch and go on bitwise."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.tasks import Task
from dsd_kernels.training.arm import ALONE, Arm, Observer
from dsd_kernels.training.build import build_dsd
from dsd_kernels.training.config import Config
from dsd_kernels.training.ranks import Ranks


class Run:
    """The two arms, one after the other. Only `sparsity` differs, so the mask is the whole difference."""

    def __init__(self, config: Config, task: Task, ranks: Ranks = ALONE) -> None:
        self.config, self.ranks, self.device = config, ranks, ranks.device(config.device)
        self.task = task.to(self.device)
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
            device=self.device,
            keep_history=keep_history,
            ranks=self.ranks,
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
        """Tensors and plain types only, so that it loads with `weights_only=True`.

        All ranks have to ask for it together; each gets the state of the whole run.
        """
        return {
            "config": self.config.to_dict(),
            "position": self.position,
            "data_sha256": self.task.sha256,
            "dimensions": self.task.dimensions,
            "arms": {arm.name: arm.state_dict() for arm in self},
            "launch": self.ranks.launch,
            "ranks": self.ranks.gather(self._own_state()),
        }

    def _own_state(self) -> dict[str, Any]:
        """What each rank has for itself."""
        on_gpu = self.dsd.device.type == "cuda"
        return {
            "arms": {arm.name: arm.own_state() for arm in self},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.dsd.device) if on_gpu else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a state stands, saved by as many ranks or by another number.

        Raises:
            Whatever a state of another structure provokes: call it within `checkpoint.fitting`.
        """
        saved = state["ranks"] if "ranks" in state else [_of_version_3(state)]
        mine = saved[self.ranks.rank :: self.ranks.size]
        for arm in self:
            parts = [part["arms"][arm.name] for part in mine]
            arm.load_state_dict({**state["arms"][arm.name], **_added(parts)})
        if self.position != state["position"]:
            raise ValueError(f"stands at {self.position!r}, not at {state['position']!r}")
        own = saved[self.ranks.rank % len(saved)]
        torch.set_rng_state(own["random"])
        if own["random_cuda"] is not None:
            torch.cuda.set_rng_state(own["random_cuda"], self.dsd.device)


def _added(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sums of several ranks, or of none."""
    zero = torch.zeros((), dtype=torch.float64)
    return {key: sum((part[key] for part in parts), start=zero) for key in ("loss_sum", "n_right")}


def _of_version_3(state: dict[str, Any]) -> dict[str, Any]:
    """What the only rank had for itself."""
    return {key: state[key] for key in ("arms", "random", "random_cuda")}
