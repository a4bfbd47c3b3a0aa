"""P-GaP: grow-and-prune by several workers, each with a partition of its own (Ma et al., ICLR 2022)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsd_kernels.flows.arguments import FlowOptions, check_options
from dsd_kernels.flows.gap import GaP
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.precision import MASTER_WEIGHT
from dsd_kernels.schedule import Phase
from dsd_kernels.shards import is_sharded


class ParallelGaP(GaP):
    """P-GaP: from one sparse model every worker grows a partition of its own and trains; then the results are combined.

    ``start: random masks;  round: worker i grows partition i of the same model, trains it for `grow` units; every
    partition is taken from the worker that grew it, and pruned;  at the end: `final` units with all masks``

    Args:
        optimizer: a `MaskedSGD` without masks.
        model: the module whose parameters are pruned; not in DistributedDataParallel over workers, which differ.
        partitions: how many partitions the prunable layers are cut into, or the names or patterns of each. There is a
            worker for each.
        grow: length of a worker's training in a round, in units.
        rounds: how often the workers start from a common model.
        final: length of the fine-tuning at the end; 0 ends with the last pruning.
        sparsity: fraction of the prunable weights that masks prune, in [0, 1); None where `distribution` is a dict.
            Default None.
        lr_factors: factors of the learning rate: (grow, final). Default (1, 1).
        process_group: the ranks that are the workers, as many as partitions. Default None: all ranks where
            torch.distributed is initialised with more than one, otherwise this process is every worker in turn.
            Where a worker is several ranks with the same weights, it is the group of this rank's counterparts.
        options: unit, selection, seed as in `Flow`; those of `masks.plan`, but for ``distribution="global"``.

    Raises:
        TypeError, ValueError: as `GaP`; another number of ranks than of partitions; over
            ranks, a parameter that is a DTensor.

    Notes:
        `phase.grown` is the worker's number: let it choose the worker's share or order of the data. All momentum is 0
        at the start of every round and of the fine-tuning, and float32 masters start from the rounded weights, since
        those of different workers do not belong together. Grown weights start at 0.
        One process is every worker in turn, so a round takes partitions * grow units. It keeps two copies of the model
        beside it, one of the common start with its masks, one of what workers have grown; both are in the state dict.
        Over ranks a round takes `grow` units and ends with one all-reduce of the whole model, to the bit: what a rank
        does not contribute is zero bytes. Each rank saves and loads state dicts of its own while it grows. Start all
        ranks from the same weights. Both ways give the same bits where workers see the same data and randomness.
        A worker of several ranks is a row of a mesh (workers, replicas), `process_group` its column; train such a model
        through ``DistributedDataParallel(model, process_group=mesh.get_group("replicas"))``.
        A choice of ours: what is not pruned (biases, normalisation and its statistics, the first convolution) belongs
        to the partition of the pruned parameter before it in the model, or else of the first one.

    Source: Ma et al. 2022, "Effective Model Sparsification by Scheduled Grow-and-Prune Methods" (arXiv 2106.09857).

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.flows import ParallelGaP
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
        >>> optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> flow = ParallelGaP(optimizer, model, partitions=2, grow=1, rounds=1, final=1, sparsity=0.75)
        >>> while not flow.finished:
        ...     print(flow.phase.name, flow.phase.grown, [int(mask.sum()) for mask in optimizer.masks.values()])
        ...     flow.step()  # after each epoch
        grow 0 [64]
        grow 1 [64]
        final None [64, 64]
    """

    def __init__(
        self,
        optimizer: MaskedSGD,
        model: nn.Module,
        *,
        partitions: int | Sequence[Sequence[str]],
        grow: int,
        rounds: int,
        final: int,
        sparsity: float | None = None,
        lr_factors: Sequence[float] = (1, 1),
        process_group: dist.ProcessGroup | None = None,
        **options: Unpack[FlowOptions],
    ) -> None:
        check_options(type(self).__name__, options)  # order, momentum and regrown of a `GaP` are not for workers
        self._group = process_group
        self._in_parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size(process_group) > 1
        if self._in_parallel and isinstance(model, nn.Module):
            _check_whole(model)
        self._start: dict[str, Tensor] = {}
        self._start_masks: dict[str, Tensor] = {}
        self._grown: dict[str, Tensor] = {}
        super().__init__(
            optimizer,
            model,
            partitions=partitions,
            grow=grow,
            rounds=rounds,
            final=final,
            sparsity=sparsity,
            order="cyclic",
            lr_factors=lr_factors,
            momentum="zero_all",
            regrown="zero",
            **options,
        )

    def growth(self, n: int, rounds: int, seed: int) -> list[int]:
        """A rank grows its own partition in every round; one process grows all of them, one after the other."""
        if not self._in_parallel:
            return super().growth(n, rounds, seed)
        if (n_ranks := dist.get_world_size(self._group)) != n:
            raise ValueError(f"partitions: expected {n_ranks}, one for each rank, got {n}")
        return [dist.get_rank(self._group)] * rounds

    def begin(self) -> None:
        """Random masks everywhere, the model that all workers start from; then the first worker."""
        self.prune_at_random(self.make_plan(self.phase.sparsity).sparsities(), "start")
        self._keep_start()
        self.enter(self.phase)

    def leave(self, following: Phase) -> None:
        """Keep what the worker has grown; then the next worker starts as it did, or the round ends."""
        tensors = self._tensors()
        owners = self._owners(tensors)
        grown = {name: tensor for name, tensor in tensors.items() if owners[name] == self.phase.grown}
        if self._in_parallel:
            self._put(exchange(tensors, grown, self._group))
            self._prune_all()
            return
        self._grown |= {name: tensor.detach().clone() for name, tensor in grown.items()}
        if following.grown:
            self._put(self._start)
            parameters = dict(self.model.named_parameters())
            self.optimizer.set_masks({parameters[name]: mask for name, mask in self._start_masks.items()})
        else:
            self._put(self._grown)
            self._prune_all()
            self._keep_start()

    @property
    def keeps_tensors(self) -> bool:
        """Unless the workers are ranks."""
        return not self._in_parallel

    def kept_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The model that the round started from, its masks, and what workers have grown since."""
        return {
            **super().kept_tensors(),
            "start": self._start,
            "start_masks": self._start_masks,
            "grown": self._grown,
        }

    def adopt_tensors(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """As in `Flow`."""
        super().adopt_tensors(tensors)
        self._start, self._start_masks, self._grown = (
            dict(tensors.get(purpose, {})) for purpose in ("start", "start_masks", "grown")
        )

    def _prune_all(self) -> None:
        """New masks for all: every partition comes from the worker that grew it, so none has its zeros any more."""
        self.prune(self.make_plan(self.phase.sparsity).sparsities())

    def _keep_start(self) -> None:
        self._grown = {}
        if not self._in_parallel:
            names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
            self._start = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
            self._start_masks = {names[p]: mask for p, mask in self.optimizer.masks.items()}

    def _tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, module by module."""
        found: dict[Tensor, str] = {}
        for prefix, module in self.model.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for attribute, tensor in own:
                found.setdefault(tensor, f"{prefix}.{attribute}" if prefix else attribute)
        return {name: tensor for tensor, name in found.items()}

    def _owners(self, names: Iterable[str]) -> dict[str, int]:
        """The partition that each parameter and buffer belongs to."""
        partition_of = {name: i for i, names in enumerate(self.partitions) for name in names}
        owners, owner = {}, 0
        for name in names:
            owner = owners[name] = partition_of.get(name, owner)
        return owners

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(values[name])
            if MASTER_WEIGHT in (entry := self.optimizer.state.get(tensor, {})):
                entry[MASTER_WEIGHT].copy_(tensor)


def _check_whole(model: nn.Module) -> None:
    """Raise for what `exchange` cannot send, before a worker has trained."""
    for name, p in model.named_parameters():
        if is_sharded(p):
            raise TypeError(f"model: expected plain parameters, which a worker has whole, {name} is a DTensor")


def exchange(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> dict[str, Tensor]:
    """Every tensor from the rank that has it among its own, bit by bit, by one all-reduce.

    Notes:
        A sum of bytes of which all but one rank's are 0 is exact, where a sum of floats would lose a -0.
    """
    device = next(iter(tensors.values())).device
    pieces = [
        _bytes(tensor).to(device) if name in own else torch.zeros(tensor.nbytes, dtype=torch.uint8, device=device)
        for name, tensor in tensors.items()
    ]
    flat = torch.cat(pieces)
    dist.all_reduce(flat, group=group)
    parts = flat.split([piece.numel() for piece in pieces])
    return {
        name: part.clone().view(tensor.dtype).view(tensor.shape)  # clone: a view of another dtype must be aligned
        for part, (name, tensor) in zip(parts, tensors.items(), strict=True)
    }


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
