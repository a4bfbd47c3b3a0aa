"""Curves and histograms for TensorBoard: a run for each arm, so that the same quantity of all arms is in one chart."""

import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
from torch import Tensor

from dsd_kernels.training.arm import Arm, Observer, Record
from dsd_kernels.training.history import N_BINS

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
    """Writes what is recorded after each epoch, and |w| of each layer where a phase ends; without a folder, nothing.

    What an older run, or the same one before an interruption, wrote from the first epoch on that is written here no
    longer counts: TensorBoard shows each epoch once.
    """

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
        if self.folder and arm.history and arm.history.has_end_of(record["phase"]):
            _write_histograms(self.writers[arm.name], arm.history.snapshots[-1]["layers"], record["epoch"])

    def write(self, name: str, records: Iterable[Record]) -> None:
        """Write the records of a run; what is not finite is left out."""
        if self.folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        for record in records:
            if name not in self.writers:
                self.writers[name] = SummaryWriter(str(self.folder / name), purge_step=record["epoch"])
            for tag, key in SCALARS.items():
                if record[key] is not None:
                    self.writers[name].add_scalar(tag, record[key], record["epoch"])
            self.writers[name].flush()


def _write_histograms(writer: "SummaryWriter", layers: Mapping[str, Any], epoch: int) -> None:
    """Histograms of |w|, of the weights that no mask prunes; none of a training that diverged."""
    for name, layer in layers.items():
        counts, width = layer["counts"], layer["largest"] / N_BINS
        if not 0 < width < math.inf:
            continue
        limits = [width * (i + 1) for i in range(N_BINS)]
        middles = [limit - width / 2 for limit in limits]
        writer.add_histogram_raw(
            f"weights/{name}",
            min=0.0,
            max=layer["largest"],
            num=sum(counts),
            sum=sum(n * middle for n, middle in zip(counts, middles, strict=True)),
            sum_squares=sum(n * middle**2 for n, middle in zip(counts, middles, strict=True)),
            bucket_limits=limits,
            bucket_counts=counts,
            global_step=epoch,
        )


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
