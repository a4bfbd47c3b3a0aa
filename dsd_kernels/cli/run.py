"""A run: DSD, then the same training without pruning; both can stop after any batch and go on bitwise."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dsd_kernels.cli.config import Config
from dsd_kernels.cli.tasks import Task, evaluate, loss_of
from dsd_kernels.flows.dsd import DSD
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase, Schedule
from dsd_kernels.seeds import derived_seed

Record = dict[str, Any]


class Observer(Protocol):
    """Who watches a run."""

    def batch(self, arm: "Arm", loss: Tensor, /) -> None: ...

    def epoch(self, arm: "Arm", record: Record, /) -> None: ...


def build_flow(config: Config, model: nn.Module, sparsity: Sequence[float] | float) -> DSD:
    """The optimizer and the flow of a run over a model."""
    optimizer = MaskedSGD(
        model.named_parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        mask_momentum=config.mask_momentum,
    )
    return DSD(
        optimizer,
        model,
        dense=config.dense,
        sparse=config.sparse,
        redense=config.redense,
        sparsity=sparsity,
        iterations=config.iterations,
        lr_factors=config.lr_factors,
        distribution=config.distribution,
    )


def phase_names(schedule: Schedule) -> list[str]:
    """The phases' names, numbered where one comes again: dense, sparse 1, redense 1, sparse 2, redense 2."""
    names = [phase.name for phase in schedule]
    return [f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


class Arm:
    """One of the two trainings: network, optimizer, flow, and where it stands.

    Both arms start from the same weights and see the same batches and the same randomness in each epoch; their learning
    rates are the same too. Only `sparsity` differs, so the mask is the whole difference.
    """

    def __init__(self, name: str, config: Config, task: Task, sparsity: Sequence[float] | float) -> None:
        self.name, self.config, self.task = name, config, task
        self.prunes = sparsity != 0
        self.device = torch.device(config.device)
        torch.manual_seed(derived_seed(config.seed, "weights"))
        self.model = task.build().to(self.device)
        self.flow = build_flow(config, self.model, sparsity)
        self.optimizer = self.flow.optimizer
        self.n_epochs = self.flow.schedule.length
        self.n_batches = -(-len(task.train[0]) // config.batch_size)
        self.epoch, self.batch, self.seconds = 0, 0, 0.0
        self.records: list[Record] = []
        self.plans: list[dict[str, int]] = []
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
        """The phase in words. The baseline shares only the learning rates of the phases."""
        index, _ = self.flow.schedule.at(self.epoch)
        return phase_names(self.flow.schedule)[index] if self.prunes else "unpruned"

    def train_epoch(self, observer: Observer, stop: Callable[[], bool]) -> bool:
        """Go on with the epoch under way; False if asked to stop before its end."""
        began = time.perf_counter()
        try:
            if self.batch == 0:
                torch.manual_seed(derived_seed(self.config.seed, "dropout", self.epoch))
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
        inputs, targets = (tensor[rows] for tensor in self.task.train)
        loss, n_right = loss_of(self.model, inputs, targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.loss_sum += loss.detach().double() * targets.numel()
        self.n_right += n_right
        self.batch += 1
        return loss.detach()

    def _finish_epoch(self, observer: Observer) -> None:
        began = time.perf_counter()
        test_loss, n_right = evaluate(self.model, self.task.test)
        n_train, phase = self.task.train[1].numel(), self.phase
        record = {
            "epoch": self.epoch + 1,
            "phase": self.stage,
            "lr": self.config.lr * phase.lr_factor,
            "sparsity_asked": phase.sparsity,
            "sparsity_actual": self.optimizer.sparsity().masked,
            "train_loss": self.loss_sum.item() / n_train * self.task.loss_per_nat,
            "train_accuracy": self.n_right.item() / n_train,
            "test_loss": test_loss * self.task.loss_per_nat,
            "test_right": n_right,
            "test_accuracy": n_right / self.task.n_test,
            "seconds": self.seconds + time.perf_counter() - began,
        }
        self.records.append(record)
        self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
        self._reset_sums()
        self.flow.step()
        if self.flow.phase is not phase:
            self._keep_plan()
        observer.epoch(self, record)

    def _keep_plan(self) -> None:
        """Remember how many weights of which layer a sparse phase prunes, at its start."""
        if self.flow.phase.sparsity > 0 and self.flow.plan:
            self.plans.append({row.name: row.n_pruned for row in self.flow.plan.prunable})

    def _reset_sums(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.n_right = torch.zeros((), dtype=torch.int64, device=self.device)

    def order(self) -> list[Tensor]:
        """The rows of each batch; a function of seed and epoch alone, so it need not be saved."""
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "order", self.epoch))
        permutation = torch.randperm(len(self.task.train[0]), generator=generator)
        return list(torch.split(permutation.to(self.device), self.config.batch_size))

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "flow": self.flow.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum,
            "n_right": self.n_right,
            "records": self.records,
            "plans": self.plans,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.flow.load_state_dict(state["flow"])
        self.epoch, self.batch, self.seconds = state["epoch"], state["batch"], state["seconds"]
        self.loss_sum.copy_(state["loss_sum"])
        self.n_right.copy_(state["n_right"])
        self.records, self.plans = state["records"], state["plans"]
        if not self.epoch == self.flow.position == len(self.records):
            raise ValueError(f"{self.name}: epoch {self.epoch}, but {len(self.records)} records")


class Run:
    """The two arms, one after the other."""

    def __init__(self, config: Config, task: Task) -> None:
        self.config, self.task = config, task.to(config.device)
        self.dsd = Arm("dsd", config, self.task, config.sparsity)
        self.baseline = Arm("baseline", config, self.task, 0.0)

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
