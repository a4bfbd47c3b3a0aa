"""Tensors that lie in shards on several ranks (DTensor: FSDP2, tensor parallelism): what of them is here, and where.

Everything works on the local tensor; what the API gives and takes is a DTensor placed as its parameter is.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsd_kernels.ops.global_selection import global_counts
from dsd_kernels.ops.layout import densify
from dsd_kernels.ops.shard_selection import Shard, pooled_counts, shard_counts
from dsd_kernels.ops.transfer import on_device

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor; asked without importing torch.distributed.tensor, which takes half a second."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank: the tensor itself, or a DTensor's local one, which shares its memory."""
    if not is_sharded(tensor):
        return tensor
    own: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return own


def like(parameter: Tensor, own: Tensor) -> Tensor:
    """A local tensor as the API gives it: itself, or, beside a DTensor, a DTensor placed as that is."""
    if not is_sharded(parameter):
        return own
    from torch.distributed.tensor import DTensor

    p: Any = parameter
    return DTensor.from_local(own, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def local_state(parameter: Tensor, entry: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer keeps for a parameter: the entry itself, or, of a DTensor, a copy with local tensors."""
    if not is_sharded(parameter):
        return entry
    return {key: local(value) if isinstance(value, Tensor) else value for key, value in entry.items()}


def placed_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The local part of a tensor that belongs to a parameter, placed as that is.

    A whole tensor beside a DTensor is cut; a DTensor that is placed differently is redistributed.
    """
    if not is_sharded(parameter):
        return tensor
    p: Any = parameter
    if is_sharded(tensor):
        t: Any = tensor
        same = t.device_mesh == p.device_mesh and tuple(t.placements) == tuple(p.placements)
        return local(t if same else t.redistribute(p.device_mesh, p.placements))
    for dim, positions in enumerate(_positions(p)):
        tensor = tensor.index_select(dim, positions.to(tensor.device))
    return tensor


def shard_of(parameter: Tensor, own: Tensor) -> Shard:
    """Where the local weights lie in the whole tensor.

    Args:
        parameter: a DTensor that `check_shard` accepts, or a plain tensor, which every rank has whole.
        own: its local tensor, or another one (a dense copy, the master weights) with its shape.
    """
    if not is_sharded(parameter):
        return Shard(own, (), own.numel(), (), own.device.type)
    p: Any = parameter
    places = tuple(
        on_device(positions * stride, own.device) for positions, stride in zip(_positions(p), p.stride(), strict=True)
    )
    extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
    return Shard(own, places, max(extent, 0), sharding_groups(p), p.device_mesh.device_type)


def shares(parameters: Sequence[Tensor], weights: Sequence[Tensor], k: Sequence[int] | Tensor) -> list[Tensor | None]:
    """Of every DTensor that is cut, how many of its k smallest magnitudes lie on this rank: tensors on the device.

    Args:
        parameters: of any kind; a plain or replicated one has None.
        weights: what each is selected by: itself, its local tensor, a dense copy or the master weights of that.
        k: one integer per parameter, the same on every rank; a list, or an int64 tensor on the device.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for i, (p, weight) in enumerate(zip(parameters, weights, strict=True)):
        if sharding_groups(p):
            alike[weight.device, weight.dtype].append(i)
    found: list[Tensor | None] = [None] * len(parameters)
    for indices in alike.values():
        own = densify([local(weights[i]) for i in indices])
        shards = [shard_of(parameters[i], weight) for i, weight in zip(indices, own, strict=True)]
        own_k = torch.stack([k[i] for i in indices]) if isinstance(k, Tensor) else [k[i] for i in indices]
        for i, count in zip(indices, shard_counts(shards, own_k), strict=True):
            found[i] = count
    return found


def counts_of_smallest(parameters: Sequence[Tensor], k: int) -> Tensor:
    """How many of the k smallest magnitudes of all parameters together belong to each of them, DTensors whole.

    As `global_counts`, which does it where none is a DTensor; each dtype is converted to the widest one otherwise.
    """
    if not any(map(is_sharded, parameters)):
        return global_counts(parameters, k)
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters))
    weights = densify([local(p).detach().to(dtype) for p in parameters])
    return pooled_counts([shard_of(p, weight) for p, weight in zip(parameters, weights, strict=True)], k)


def add_up(parameters: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Counts of this rank's shards as those of the whole tensors; the host waits for them.

    Args:
        parameters: of any kind; the counts of a plain or replicated one are right as they are.
        counts: of each parameter as many; one message adds up those of all that the same ranks share.
    """
    totals = [list(own) for own in counts]
    alike: dict[tuple[tuple[Any, ...], str], list[int]] = defaultdict(list)
    for i, p in enumerate(parameters):
        if groups := sharding_groups(p):
            alike[groups, p.device_mesh.device_type].append(i)  # type: ignore[attr-defined]
    for (groups, device), indices in alike.items():
        total = torch.tensor([totals[i] for i in indices], dtype=torch.int64, device=device)
        for group in groups:
            dist.all_reduce(total, group=group)
        for i, row in zip(indices, total.tolist(), strict=True):
            totals[i] = row
    return totals


def piece_sizes(parameter: Tensor, dim: int) -> set[int]:
    """The sizes that a dimension has on the ranks, all of them: every rank judges by the same; empty ones left out."""
    sizes = {parameter.shape[dim]}
    for mesh_dim, cut_dim in _cuts(parameter) if is_sharded(parameter) else ():
        if cut_dim == dim:
            n: int = parameter.device_mesh.size(mesh_dim)  # type: ignore[attr-defined]
            sizes = {piece for size in sizes for piece in _chunk_sizes(size, n)}
    return sizes


def _chunk_sizes(size: int, n: int) -> set[int]:
    """Those of `Tensor.chunk`."""
    longest = max(-(-size // n), 1)
    return {min(longest, size - start) for start in range(0, size, longest)}


def sharding_groups(parameter: Tensor) -> tuple[Any, ...]:
    """The groups of ranks over which a tensor is cut, one for each mesh dimension that does so."""
    return _groups(parameter, replicating=False)


def replica_groups(parameter: Tensor) -> tuple[Any, ...]:
    """The groups of ranks that hold the same part of a DTensor, one for each mesh dimension."""
    return _groups(parameter, replicating=True)


def _groups(parameter: Tensor, *, replicating: bool) -> tuple[Any, ...]:
    if not is_sharded(parameter):
        return ()
    p: Any = parameter
    return tuple(
        p.device_mesh.get_group(dim)
        for dim, placement in enumerate(p.placements)
        if placement.is_replicate() == replicating and p.device_mesh.size(dim) > 1
    )


def why_no_shard(parameter: Tensor) -> str:
    """Why a tensor is neither plain nor a DTensor whose ranks hold parts of it; empty if it is."""
    if is_sharded(parameter):
        for placement in parameter.placements:  # type: ignore[attr-defined]
            if not (placement.is_replicate() or _is_cut(placement)):
                return f"a DTensor placed by {placement!r}"
    return ""


def check_shard(name: str, parameter: Tensor) -> None:
    """Raise for a DTensor whose local tensor does not say which weights it holds; a plain tensor always does.

    Raises:
        TypeError: a placement that is neither Shard nor Replicate.
        ValueError: a local tensor of another size than the placements say, or in another memory order.
    """
    if why := why_no_shard(parameter):
        raise TypeError(f"{name}: expected a DTensor placed by Shard and Replicate, got {why}")
    if not is_sharded(parameter):
        return
    p: Any = parameter
    own, expected = local(p), tuple(map(len, _positions(p)))
    if tuple(own.shape) != expected:
        raise ValueError(f"{name}: expected a local shard of shape {expected}, got {tuple(own.shape)}")
    if not _same_order(own, p):
        raise ValueError(
            f"{name}: expected a local shard in the memory order of the whole, of strides {tuple(p.stride())}, "
            f"got strides {own.stride()}"
        )


def _same_order(own: Tensor, whole: Tensor) -> bool:
    """Whether the dimensions that matter locally follow each other in memory as they do in the whole tensor."""
    dims = [dim for dim, size in enumerate(own.shape) if size > 1] if own.numel() else []
    return sorted(dims, key=own.stride) == sorted(dims, key=whole.stride)


def _is_cut(placement: Any) -> bool:
    return not placement.is_replicate() and not placement.is_partial() and hasattr(placement, "dim")


def _is_strided(placement: Any) -> bool:
    """FSDP over tensor parallelism, cut along one dimension by both: the later mesh dimensions cut first."""
    return getattr(placement, "split_factor", 1) > 1


def _cuts(p: Any) -> list[tuple[int, int]]:
    """(mesh dimension, dimension that it cuts), in the order of cutting."""
    cuts = [(mesh_dim, placement) for mesh_dim, placement in enumerate(p.placements) if _is_cut(placement)]
    plain, strided = ([cut for cut in cuts if _is_strided(cut[1]) is wanted] for wanted in (False, True))
    return [(mesh_dim, placement.dim % p.dim()) for mesh_dim, placement in (*plain, *reversed(strided))]


def _positions(p: "DTensor") -> list[Tensor]:
    """For each dimension, the coordinates in the whole tensor that this rank holds, on the CPU."""
    coordinate: Sequence[int] | None = p.device_mesh.get_coordinate()
    if coordinate is None:
        return [torch.empty(0, dtype=torch.int64, device="cpu") for _ in p.shape]
    positions = [torch.arange(size, device="cpu") for size in p.shape]
    for mesh_dim, dim in _cuts(p):
        pieces = positions[dim].chunk(p.device_mesh.size(mesh_dim))
        i = coordinate[mesh_dim]
        positions[dim] = pieces[i] if i < len(pieces) else positions[dim][:0]
    return positions
