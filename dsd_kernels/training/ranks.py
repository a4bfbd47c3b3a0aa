"""The ranks of one training: what each does of a batch, what all add up, and what all have to know."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed import GradBucket  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Ranks:
    """One process among those that train one network together, over torch.distributed; by default it is alone.

    The batch is that of one process, divided among the ranks, and the gradient is that of its mean loss. So the
    arithmetic is one process's but for the order of sums, and but for what a network does with its part of a batch
    alone: the statistics of batch normalisation, and dropout.

    Attributes:
        rank: 0 to size - 1; the first one writes and speaks.
        size: how many there are.
        local_rank: the number on this host, which chooses a GPU.
        launch: what started the ranks, and starts them again after a fault; None for a process that was just started.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launch: str | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def device(self, name: str) -> str:
        """The device of this rank: of several GPUs, the one with its number on the host."""
        return f"cuda:{self.local_rank}" if name == "cuda" and not self.alone else name

    def purpose(self, purpose: str) -> str:
        """What a seed is derived for: every rank has random numbers of its own, the first one those of one process."""
        return purpose if self.is_first else f"{purpose} of rank {self.rank}"

    def share(self, rows: Tensor) -> tuple[Tensor, float]:
        """The rows of a batch that are this rank's, and their weight in its mean.

        A rank for which none is left takes one with weight 0, so that it takes part in every message.
        """
        own = rows.tensor_split(self.size)[self.rank]
        return (own, len(own) / len(rows)) if len(own) else (rows[:1], 0.0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model for forward and backward: gradients are added up over the ranks."""
        if self.alone:
            return model
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(None, lambda _, bucket: _add_each(bucket))
        return parallel

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.alone:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order, on every rank."""
        values = [value]
        if not self.alone:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The value of the first rank, on every rank."""
        values = [value]
        if not self.alone:
            dist.broadcast_object_list(values)
        return values[0]

    def largest(self, number: int) -> int:
        """The largest number that a rank has."""
        if self.alone:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)


def _add_each(bucket: "GradBucket") -> Future[Tensor]:
    """Add up every gradient by a message of its own.

    With more than two ranks, the order in which an element is added up depends on its place in the message. Buckets are
    filled anew after the first batch, so whole buckets would give a resumed run other bits than one that never stopped.
    """
    works = [dist.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]

    def added(all_done: Future[list[Future[Any]]]) -> Tensor:
        for done in all_done.value():
            done.value()  # raises what went wrong
        return bucket.buffer()

    return torch.futures.collect_all([work.get_future() for work in works]).then(added)
