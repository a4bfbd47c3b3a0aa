"""What the tests of flows share: a small network, its training, and a run that can be saved and loaded anywhere."""

import copy
import io

import torch
from cases import bits_equal, generator
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dsd_kernels import MaskedSGD

STEPS_PER_EPOCH = 2


class Net(nn.Module):
    """Prunable: conv.weight of 288 weights, head.weight of 160; with exclude_first=False stem.weight of 72 too."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 4, 3)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(self.norm(self.stem(x)).tanh()).tanh().flatten(1))  # tanh: every weight moves


def sgd(model: nn.Module, **options) -> MaskedSGD:
    defaults = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}
    return MaskedSGD(model.parameters(), **{**defaults, **options})


def train_epoch(model: nn.Module, optimizer: MaskedSGD, epoch: int) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(STEPS_PER_EPOCH):
        source = generator(epoch * STEPS_PER_EPOCH + step)
        x, y = torch.randn(4, 1, 6, 6, generator=source), torch.randint(10, (4,), generator=source)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.to(dtype)).float(), y).backward()
        optimizer.step()


def make_flow(kind: type, model: nn.Module | None = None, **options):
    """Model, optimizer and flow; `sgd` among the options has those of the optimizer."""
    model = Net() if model is None else model
    optimizer = sgd(model, **options.pop("sgd", {}))
    return model, optimizer, kind(optimizer, model, **options)


def n_pruned(optimizer: MaskedSGD) -> list[int]:
    return [int((~mask).sum()) for mask in optimizer.masks.values()]


def momentum_of(optimizer: MaskedSGD, parameter: torch.Tensor) -> torch.Tensor:
    return optimizer.state[parameter]["momentum_buffer"]


class Run:
    """A training run with a scheduler, that can be saved and loaded at any position."""

    def __init__(self, kind: type, weights: int = 0, dtype: torch.dtype = torch.float32, **options) -> None:
        self.model, self.optimizer, self.flow = make_flow(kind, Net(weights).to(dtype), **options)
        self.scheduler = CosineAnnealingLR(self.optimizer, T_max=self.flow.schedule.length)

    def parts(self) -> dict[str, object]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "flow": self.flow}

    def epoch(self) -> None:
        train_epoch(self.model, self.optimizer, self.flow.position)
        self.optimizer.verify()
        self.scheduler.step()
        self.flow.step()

    def snapshot(self) -> dict[str, torch.Tensor | float]:
        names = {p: name for name, p in self.model.named_parameters()}
        found = dict(self.model.state_dict())
        found |= {f"mask {names[p]}": mask for p, mask in self.optimizer.masks.items()}
        found |= {f"{key} {names[p]}": t for p, state in self.optimizer.state.items() for key, t in state.items()}
        found |= {key: self.optimizer.param_groups[0][key] for key in ("lr", "lr_factor")}
        return copy.deepcopy(found | {"phase": self.flow.phase, "position": self.flow.position})


def equal_snapshots(a: dict, b: dict) -> bool:
    def equal(x, y):
        is_float_tensor = isinstance(x, torch.Tensor) and x.is_floating_point()
        return bits_equal(x, y) if is_float_tensor else torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)


def saved_and_loaded(run: Run) -> dict:
    buffer = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in run.parts().items()}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def check_resuming_everywhere(kind: type, **options) -> None:
    """Stop at every position, rebuild, load, go on: every bit as in the run that never stopped."""
    whole = Run(kind, **options)
    snapshots = [whole.snapshot()]
    while not whole.flow.finished:
        whole.epoch()
        snapshots.append(whole.snapshot())
    first = Run(kind, **options)
    for position in range(len(snapshots)):
        resumed = Run(kind, weights=position + 1, **options)
        checkpoint = saved_and_loaded(first)
        for name in sorted(resumed.parts(), reverse=position % 2 == 1):
            resumed.parts()[name].load_state_dict(checkpoint[name])
        assert equal_snapshots(resumed.snapshot(), snapshots[position])
        for expected in snapshots[position + 1 :]:
            resumed.epoch()
            assert equal_snapshots(resumed.snapshot(), expected)
        first.epoch()
