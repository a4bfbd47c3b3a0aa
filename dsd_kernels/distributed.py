"""The same promises over ranks and shards: whether replicas have the same masks, and what selection over shards sends.

Masks need no collective of their own: replicas (DDP) select from equal weights, so they choose equal masks; shards
(DTensor: FSDP2, tensor parallelism) select together, in `MaskedSGD.prune`.
"""

from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsd_kernels.ops import pack_mask, unpack_mask
from dsd_kernels.ops.shard_selection import Traffic, count_traffic
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.shards import is_sharded, local, replica_groups, sharding_groups

__all__ = ["Traffic", "broadcast", "count_traffic", "verify"]

# odd numbers with well mixed bits, from the fractional part of the golden ratio and of the square root of 2
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_ROOT = 0x6A09E667F3BCC909
_Groups = tuple[dist.ProcessGroup | None, ...]


@torch.no_grad()
def verify(optimizer: MaskedSGD, group: dist.ProcessGroup | None = None) -> None:
    """Raise on every rank if the masks of replicas differ.

    ``min over ranks of hash(mask) == max over ranks of hash(mask), for every parameter``

    Args:
        optimizer: one with the same parameters in the same order on every rank; all ranks call this.
        group: the ranks that hold replicas of the plain parameters, as given to DistributedDataParallel. Default None:
            all ranks. Of DTensors it is their mesh that says which ranks hold replicas.

    Raises:
        RuntimeError: masks differ, or a rank has one where another has none; names the first parameter.

    Notes:
        Sends 64 bits per parameter, twice; unequal masks have equal hashes once in 2^64 times. The host waits for the
        result. Without torch.distributed initialised there is nothing to compare. It does not look at the weights:
        `optimizer.verify()` does, on each rank.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD, distributed
        >>> weight = torch.nn.Parameter(torch.ones(2, 2))
        >>> optimizer = MaskedSGD([weight], lr=0.1)
        >>> optimizer.prune(0.5)
        >>> distributed.verify(optimizer)  # one process agrees with itself
    """
    if not dist.is_initialized():
        return
    names, masks = _names(optimizer), optimizer.masks
    alike: dict[tuple[_Groups, _Groups], list[Tensor]] = defaultdict(list)
    for p in names:
        alike[replica_groups(p) if is_sharded(p) else (group,), sharding_groups(p)].append(p)
    different = set[Tensor]()
    for (replicas, shards), params in alike.items():
        lowest = _hashes(params, masks)
        highest = lowest.clone()
        for own in replicas:
            dist.all_reduce(lowest, dist.ReduceOp.MIN, group=own)
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=own)
        verdict = (lowest != highest).any(1).long()
        for own in shards:  # ranks whose own replicas agree raise too, and wait for nobody
            dist.all_reduce(verdict, dist.ReduceOp.MAX, group=own)
        different |= {p for p, is_other in zip(params, verdict.tolist(), strict=True) if is_other}
    if different:
        first = next(name for p, name in names.items() if p in different)
        raise RuntimeError(
            f"masks differ between ranks: first that of {first}, {len(different)} of {len(names)} parameters in all"
        )


@torch.no_grad()
def broadcast(optimizer: MaskedSGD, source: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Give the masks of one rank to all: for masks that ranks did not choose alike, from unequal weights say.

    Args:
        optimizer: one with the same plain parameters in the same order on every rank; all ranks call this.
        source: the rank whose masks they are; its global rank, as in torch.distributed.broadcast. Default 0.
        group: the ranks that take part. Default None: all ranks.

    Raises:
        TypeError: a parameter is a DTensor, whose ranks select together.

    Notes:
        Weights and momentum that the masks prune become 0 (see `MaskedSGD.set_masks`), masks that the source does not
        have are dropped. Sends one bit a weight. The host waits to know which parameters have masks.
    """
    names, masks = _names(optimizer), optimizer.masks
    for p, name in names.items():
        if is_sharded(p):
            raise TypeError(f"optimizer: expected plain parameters, {name} is a DTensor, whose ranks select together")
    if not dist.is_initialized() or not names:
        return
    has_mask = torch.tensor([p in masks for p in names], dtype=torch.int64, device=next(iter(names)).device)
    dist.broadcast(has_mask, source, group=group)
    chosen = [p for p, is_masked in zip(names, has_mask.tolist(), strict=True) if is_masked]
    received = {}
    for p in chosen:
        like = masks.get(p, torch.ones_like(p, dtype=torch.bool, requires_grad=False))
        [bits] = pack_mask([like])
        dist.broadcast(bits, source, group=group)
        [received[p]] = unpack_mask([bits], [like])
    optimizer.densify([p for p in masks if p not in received])
    optimizer.set_masks(received)


def _names(optimizer: MaskedSGD) -> dict[Tensor, str]:
    if not isinstance(optimizer, MaskedSGD):
        raise TypeError(f"optimizer: expected a MaskedSGD, got {type(optimizer).__name__}")
    return optimizer.parameter_names()


def _hashes(params: list[Tensor], masks: dict[Tensor, Tensor]) -> Tensor:
    """Per parameter, whether it has a mask, and its hash; int64, where its ranks can send it from."""
    rows = [torch.stack([torch.ones_like(h), h]) if (h := _hash(masks.get(p))) is not None else None for p in params]
    device: Any = params[0].device_mesh.device_type if is_sharded(params[0]) else params[0].device  # type: ignore[attr-defined]
    none = torch.zeros(2, dtype=torch.int64, device=device)
    return torch.stack([none if row is None else row.to(device) for row in rows])


def _hash(mask: Tensor | None) -> Tensor | None:
    """64 bits of a mask: a sum over its words, each mixed with its place."""
    if mask is None:
        return None
    [bits] = pack_mask([local(mask)])
    words = bits.view(torch.int64)
    mixed = (words ^ torch.arange(len(words), device=words.device) * _GOLDEN) * _ROOT
    mixed = (mixed ^ mixed >> 32) * _GOLDEN
    return (mixed ^ mixed >> 29).sum()
