"""What a task is: data, a network for it, and the words for what is counted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

SPLIT_SEED = 0  # the split is part of the task: it is the same for every --seed
TEST_FRACTION = 0.2
EVALUATION_BATCH = 512  # examples at once, where they are small


class DataError(ValueError):
    """Data that cannot be used; its text is one line that names the file or folder and what is wrong."""


class Examples(Protocol):
    """Inputs with their targets, by rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> tuple[Tensor, Tensor]: ...

    @property
    def n_targets(self) -> int: ...

    def to(self, device: str, /) -> Self: ...


@dataclass(frozen=True)
class TensorExamples:
    """Examples in memory; their first dimension is the row."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[rows], self.targets[rows]

    @property
    def n_targets(self) -> int:
        return self.targets.numel()

    def to(self, device: str) -> "TensorExamples":
        return TensorExamples(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Task:
    """Data, a network, and the words for what is counted.

    Attributes:
        description: the data in one line.
        sha256: of the data, which may differ between versions of what ships them; of images, of their names and sizes.
        train, test: the examples.
        build: makes the network, from torch's random state.
        dimensions: what `networks.build` needs to make it again, without the data.
        item: what one target is: "image" or "character".
        metric: what a study compares, chosen before it is run: "accuracy" or "loss".
        loss_unit: "nats" or "bits/char".
        loss_per_nat: converts the cross-entropy into `loss_unit`.
        is_large: whether an example may take much memory, so that no more are evaluated at once than trained on.
            Default False.
    """

    description: str
    sha256: str
    train: Examples
    test: Examples
    build: Callable[[], nn.Module]
    dimensions: dict[str, Any]
    item: str
    metric: str
    loss_unit: str
    loss_per_nat: float
    is_large: bool = False

    @property
    def n_test(self) -> int:
        return self.test.n_targets

    def evaluate(self, model: nn.Module, batch_size: int) -> tuple[float, int]:
        """Mean loss in nats and the number of right predictions on the test data; `batch_size` is that of training."""
        return evaluate(model, self.test, min(batch_size, EVALUATION_BATCH) if self.is_large else EVALUATION_BATCH)

    def to(self, device: str) -> "Task":
        """The same task with its data on a device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and how many predictions are right; one expression for images and for characters."""
    logits = model(inputs).flatten(0, -2)
    targets = targets.flatten()
    return nn.functional.cross_entropy(logits, targets, reduction=reduction), (logits.argmax(-1) == targets).sum()


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, batch_size: int = EVALUATION_BATCH) -> tuple[float, int]:
    """Mean loss in nats and the number of right predictions, of so many examples at once."""
    model.eval()
    loss_sum, n_right = 0.0, 0
    for rows in torch.arange(len(examples)).split(batch_size):
        loss, right = loss_of(model, *examples[rows], reduction="sum")
        loss_sum += loss.item()
        n_right += int(right.item())
    return loss_sum / examples.n_targets, n_right
