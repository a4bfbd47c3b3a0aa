"""One training of a comparison: network, optimizer, flow; it can stop after any batch and go on bitwise."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from dsd_kernels import distributed
from dsd_kernels.flows.base import Flow
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase, Schedule
from dsd_kernels.seeds import derived_seed
from dsd_kernels.tasks.task import Task, loss_of
from dsd_kernels.training.history import WeightHistory, end_of
from dsd_kernels.training.ranks import Ranks

Record = dict[str, Any]
ALONE = Ranks()
FlowBuilder = Callable[[nn.Module], Flow]


class Observer(Protocol):
    """Who watches a training."""

    def batch(self, arm: "Arm", loss: Tensor, /) -> None: ...

    def epoch(self, arm: "Arm", record: Record, /) -> None: ...


class Unwatched:
    """Nobody."""

    def batch(self, _: "Arm", __: Tensor) -> None:
        return None

    def epoch(self, _: "Arm", __: Record) -> None:
        return None


def phase_names(schedule: Schedule) -> list[str]:
    """The phases' names, numbered where one comes again: dense, sparse 1, redense 1, sparse 2, redense 2."""
    names = [phase.name for phase in schedule]
    return [f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


class Arm:
    """A training that can be compared with others of the same seed.

    They start from the same weights and see the same batches and the same randomness in each epoch; what their flows
    and learning rates differ in is the whole difference.

    Args:
        name: for people and for records.
        task: data and network.
        build: makes optimizer and flow over the network.
        seed: of initial weights, order and dropout.
        batch_size: rows of the data in a step, over all ranks.
        device: where the network is; the data are there already.
        schedule_lr: makes a scheduler of torch's, which steps after each epoch. Default None, the flow's factors alone.
        keep_history: whether to keep histograms of the weights at the ends of phases. Default False.
        ranks: those that train the network together. Default this process alone.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        build: FlowBuilder,
        *,
        seed: int,
        batch_size: int,
        device: str,
        schedule_lr: Callable[[MaskedSGD], LRScheduler] | None = None,
        keep_history: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.name, self.task, self.seed, self.batch_size, self.ranks = name, task, seed, batch_size, ranks
        self.device = torch.device(device)
        torch.manual_seed(derived_seed(seed, "weights"))
        self.model = task.build().to(self.device)
        self.flow = build(self.model)
        self.network = ranks.parallel(self.model)
        self.optimizer = self.flow.optimizer
        self.scheduler = schedule_lr(self.optimizer) if schedule_lr else None
        self.n_epochs = self.flow.schedule.length
        self.n_batches = -(-len(task.train) // batch_size)
        self.prunes = any(phase.sparsity > 0 for phase in self.flow.schedule)
        self.epoch, self.batch, self.seconds = 0, 0, 0.0
        self.records: list[Record] = []
        self.plans: list[dict[str, int]] = []
        self.history = WeightHistory() if keep_history else None
        self._keep_plan()
        self._reset_sums()

    @property
    def finished(self) -> bool:
        return self.epoch == self.n_epochs

    @property
    def phase(self) -> Phase:
        """The phase of the epoch under way; the last one at the end."""
        return self.flow.phase

    @property
    def stage(self) -> str:
        """The phase in words. A baseline shares only the learning rates of the phases."""
        index, _ = self.flow.schedule.at(self.epoch)
        return phase_names(self.flow.schedule)[index] if self.prunes else "unpruned"

    @property
    def lr(self) -> float:
        """The learning rate in use."""
        group = self.optimizer.param_groups[0]
        return float(group["lr"] * group["lr_factor"])

    def train_epoch(self, observer: Observer, stop: Callable[[], bool]) -> bool:
        """Go on with the epoch under way; False if asked to stop before its end."""
        began = time.perf_counter()
        try:
            if self.batch == 0:
                torch.manual_seed(derived_seed(self.seed, self.ranks.purpose("dropout"), self.epoch))
            self.model.train()
            order = self.order()
            while self.batch < self.n_batches:
                if stop():
                    return False
                observer.batch(self, self._train_batch(order[self.batch]))
        finally:
            self.seconds += time.perf_counter() - began
        self._finish_epoch(observer)
        return True

    def _train_batch(self, rows: Tensor) -> Tensor:
        own, weight = self.ranks.share(rows)
        inputs, targets = self.task.train[own]
        loss, n_right = loss_of(self.network, inputs, targets)
        self.optimizer.zero_grad()
        (loss * weight).backward()
        self.optimizer.step()
        if weight:
            self.loss_sum += loss.detach().double() * targets.numel()
            self.n_right += n_right
        self.batch += 1
        return loss.detach()

    def _finish_epoch(self, observer: Observer) -> None:
        began = time.perf_counter()
        phase, n_train = self.phase, self.task.train.n_targets
        record = {
            "epoch": self.epoch + 1,
            "phase": self.stage,
            "lr": self.lr,
            "train_loss": self.ranks.sum(self.loss_sum).item() / n_train * self.task.loss_per_nat,
            "train_accuracy": self.ranks.sum(self.n_right).item() / n_train,
            **self._measured(),
            "seconds": self.seconds + time.perf_counter() - began,
        }
        self.records.append(record)
        self._step_flow()
        if self.flow.finished and self.flow.phase is not phase:  # the flow prunes once more at its very end
            record |= self._measured()
        self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
        self._reset_sums()
        observer.epoch(self, record)

    def _measured(self) -> Record:
        """What the network is now, and what it does on the test data."""
        test_loss, n_right = self.task.evaluate(self.model, self.batch_size)
        return {
            "sparsity_asked": self.phase.sparsity,
            "sparsity_actual": self.optimizer.sparsity().masked,
            "test_loss": test_loss * self.task.loss_per_nat,
            "test_right": n_right,
            "test_accuracy": n_right / self.task.n_test,
        }

    def _step_flow(self) -> None:
        """Move flow and scheduler on, and keep what a phase that ends or begins here leaves to be told."""
        phase, stage = self.phase, self.stage
        ends = self.flow.schedule.at(self.epoch + 1)[1] is not phase or self.epoch + 1 == self.n_epochs
        if self.history and ends:
            self.history.before_phase_change(self.flow, end_of(stage))
        self.flow.step()
        if self.scheduler:
            self.scheduler.step()
        if self.flow.phase is not phase:
            if not self.ranks.alone:
                distributed.verify(self.optimizer)
            self._keep_plan()
            if self.history:
                self.history.after_phase_change(self.flow)

    def _keep_plan(self) -> None:
        """Remember how many weights of which layer a sparse phase prunes, at its start."""
        if self.flow.phase.sparsity > 0 and self.flow.plan:
            self.plans.append({row.name: row.n_pruned for row in self.flow.plan.prunable})

    def _reset_sums(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.n_right = torch.zeros((), dtype=torch.int64, device=self.device)

    def order(self) -> list[Tensor]:
        """The rows of each batch; a function of seed and epoch alone, so it need not be saved."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", self.epoch))
        permutation = torch.randperm(len(self.task.train), generator=generator)
        return list(torch.split(permutation.to(self.device), self.batch_size))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only; the random state of torch is the caller's to keep."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "flow": self.flow.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self.seconds,
            **self.own_state(),
            "records": self.records,
            "plans": self.plans,
            "history": self.history.state_dict() if self.history else None,
        }

    def own_state(self) -> dict[str, Tensor]:
        """What other ranks do not have: the sums over this rank's part of the epoch's batches so far."""
        return {"loss_sum": self.loss_sum.cpu(), "n_right": self.n_right.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.flow.load_state_dict(state["flow"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.epoch, self.batch, self.seconds = state["epoch"], state["batch"], state["seconds"]
        self.loss_sum.copy_(state["loss_sum"])
        self.n_right.copy_(state["n_right"])
        self.records, self.plans = state["records"], state["plans"]
        if self.history:
            self.history.load_state_dict(state["history"])
        if not self.epoch == self.flow.position == len(self.records):
            raise ValueError(f"{self.name}: epoch {self.epoch}, but {len(self.records)} records")
