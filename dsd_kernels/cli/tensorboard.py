"""Curves for TensorBoard: one run for each arm, so that the same quantity of all arms is in one chart."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click
from torch import Tensor

from dsd_kernels.training.arm import Arm, Observer, Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

INSTALL = "pip install 'dsd-kernels[tensorboard]'"
SCALARS = {
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/test": "test_accuracy",
    "sparsity": "sparsity_actual",
    "lr": "lr",
}


class TensorBoard:
    """Writes what is recorded after each epoch; without a folder, nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.writers: dict[str, SummaryWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.writers.values():
            writer.close()

    def batch(self, _: Arm, __: Tensor) -> None:
        return None

    def epoch(self, arm: Arm, record: Record) -> None:
        self.write(arm.name, [record])

    def write(self, name: str, records: Iterable[Record]) -> None:
        """Write the records of a run; what is not finite is left out."""
        if self.folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        if name not in self.writers:
            self.writers[name] = SummaryWriter(str(self.folder / name))
        writer = self.writers[name]
        for record in records:
            for tag, key in SCALARS.items():
                if record[key] is not None:
                    writer.add_scalar(tag, record[key], record["epoch"])
        writer.flush()


class Several:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def batch(self, arm: Arm, loss: Tensor) -> None:
        for observer in self.observers:
            observer.batch(arm, loss)

    def epoch(self, arm: Arm, record: Record) -> None:
        for observer in self.observers:
            observer.epoch(arm, record)


def check_installed(folder: Path | None) -> None:
    """Refuse to promise what cannot be written."""
    if folder is not None and importlib.util.find_spec("tensorboard") is None:
        raise click.ClickException(f"--tensorboard needs tensorboard, which is not installed: {INSTALL}")
