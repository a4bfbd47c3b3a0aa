"""Exact selection over tensors of which every rank holds a shard: digit histograms are added up, weights stay at home.

The k-th magnitude of a whole tensor is found digit by digit: each rank counts the digits of its own weights, one
all-reduce adds the counts of all tensors up, and every rank picks the same digit. Weights that tie at the threshold are
told apart by their place in the whole tensor, found in the same way, so that the set is that of one process.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dsd_kernels.ops import reference
from dsd_kernels.ops.layout import memory_order
from dsd_kernels.ops.reference import DIGIT_BITS

N_BINS = 1 << DIGIT_BITS
_CHUNK = 1 << 18  # weights whose places exist at the same time


@dataclass(frozen=True, eq=False)
class Shard:
    """What this rank holds of a tensor.

    Attributes:
        local: the weights, a dense tensor whose memory order is theirs in the whole tensor.
        places: for each dimension, what each local coordinate adds to a weight's place in the whole tensor's memory.
        extent: one more than the highest place in the whole tensor.
        groups: the ranks whose shards make up the tensor: those that one all-reduce after the other adds up.
        wire: the type of device from which these groups send.
    """

    local: Tensor
    places: tuple[Tensor, ...]
    extent: int
    groups: tuple[dist.ProcessGroup, ...]
    wire: str


@dataclass
class Traffic:
    """What selection has sent: all-reduces, and the bytes of the tensors that they added up, on this rank."""

    n_messages: int = 0
    n_bytes: int = 0


_counting: list[Traffic] = []


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count what selection over shards sends inside the scope, on this rank.

    ``n_bytes = 8 * 256 * tensors * rounds``, for each group that shards them

    Returns:
        A `Traffic`, which grows inside the scope.

    Notes:
        Bytes are those of the tensors that are all-reduced; a ring sends each twice, less a share.

    Example:
        >>> from dsd_kernels.distributed import count_traffic
        >>> with count_traffic() as traffic:
        ...     pass
        >>> traffic
        Traffic(n_messages=0, n_bytes=0)
    """
    traffic = Traffic()
    _counting.append(traffic)
    try:
        yield traffic
    finally:
        _counting[:] = [other for other in _counting if other is not traffic]


class _Digits(NamedTuple):
    """Per tensor: the digits of what was sought, and how many weights come before it and share it, here and in all."""

    found: Tensor
    below: Tensor
    equal: Tensor
    below_in_all: Tensor
    equal_in_all: Tensor
    remaining: Tensor  # how many of those that share it are among the k; one number where tensors are pooled


@torch.no_grad()
def shard_counts(shards: Sequence[Shard], k: Sequence[int] | Tensor) -> Tensor:
    """How many of the k smallest magnitudes of each whole tensor lie in this rank's shard of it.

    ``out[i] = how many of argsort(|whole_i|, stable)[:k[i]] are places of shards[i]``

    Args:
        shards: of tensors of one dtype (float32, float64, bfloat16, float16), on one device. Every rank of their groups
            calls this with the shards of the same tensors in the same order.
        k: one integer in [0, weights of the whole tensor] per tensor, the same on every rank; a list, or an int64
            tensor on the shards' device. Not checked again.

    Returns:
        int64 tensor of shape (len(shards),) on the shards' device.

    Notes:
        Exact and deterministic: since a shard's memory order is the whole tensor's, its share are its smallest
        magnitudes, ties by lowest index first. NaN orders above Inf. Weights are read once per 8 bits, and sent never:
        256 counts of 8 bytes per tensor and round, in 4 rounds for float32, 8 for float64, 2 for bfloat16 and float16,
        and one for every 8 bits of the largest index where ties are told apart. On the CPU these last rounds are left
        out if there are none; a GPU is not asked, so there is no host synchronisation.

    Source: radix selection; the distributed form is this library's own.
    """
    counts: dict[int, Tensor] = {}
    if not isinstance(k, Tensor):
        k = on_device(torch.tensor(k, dtype=torch.int64, device="cpu"), shards[0].local.device)
    wanted = k.unbind()
    for indices in _by_groups(shards):
        own = [shards[i] for i in indices]
        keys = _find_keys(own, torch.stack([wanted[i] for i in indices]), pooled=False)
        counts |= zip(indices, keys.below + _share_of_ties(own, keys), strict=True)
    return torch.stack([counts[i] for i in range(len(shards))])


@torch.no_grad()
def pooled_counts(shards: Sequence[Shard], k: int) -> Tensor:
    """How many of the k smallest magnitudes of all whole tensors together belong to each of them.

    ``out[i] = how many of sort(concatenation of |whole tensors|)[:k] are weights of tensor i``

    Args:
        shards: as in `shard_counts`; one without groups is a tensor that this rank holds whole.
        k: an integer in [0, number of weights of all whole tensors], the same on every rank; not checked again.

    Returns:
        int64 tensor of shape (len(shards),) on the shards' device, the same on every rank.

    Notes:
        Exact and deterministic. Ties go to the earlier tensor first. Sends what `shard_counts` does without the rounds
        for ties. No host synchronisation on a GPU.

    Source: as `dsd_kernels.ops.global_selection.global_counts`, over shards.
    """
    keys = _find_keys(shards, on_device(torch.tensor([k], device="cpu"), shards[0].local.device), pooled=True)
    ties_before = keys.equal_in_all.cumsum(0) - keys.equal_in_all
    return keys.below_in_all + (keys.remaining - ties_before).clamp(min=0).minimum(keys.equal_in_all)


def _find_keys(shards: Sequence[Shard], k: Tensor, *, pooled: bool) -> _Digits:
    weights = [shard.local for shard in shards]
    key_bits = weights[0].dtype.itemsize * 8 - 1
    return find_digits(shards, k, key_bits, partial(torch.ops.dsd_kernels.magnitude_histogram, weights), pooled)


def find_digits(
    shards: Sequence[Shard], k: Tensor, n_bits: int, count: Callable[[Tensor, int], Tensor], pooled: bool
) -> _Digits:
    """The k-th smallest of each whole tensor, or of all together, from its highest digit down.

    `count(found, shift)` counts, per tensor, the digit at `shift` of this rank's weights whose higher digits are found.
    """
    zeros = torch.zeros(len(shards), dtype=torch.int64, device=k.device)
    found, below, equal, below_in_all, equal_in_all = (zeros.clone() for _ in range(5))
    remaining = k
    for shift in range((n_bits - 1) // DIGIT_BITS * DIGIT_BITS, -1, -DIGIT_BITS):
        counts = count(found, shift)
        in_all = _add_up(counts, shards)
        up_to = (in_all.sum(0, keepdim=True) if pooled else in_all).cumsum(1)
        digit = (up_to < remaining[:, None]).sum(1, keepdim=True).expand(len(shards), 1)
        before, before_in_all = ((c.cumsum(1) - c).gather(1, digit)[:, 0] for c in (counts, in_all))
        remaining = remaining - (before_in_all.sum(0, keepdim=True) if pooled else before_in_all)
        below, below_in_all = below + before, below_in_all + before_in_all
        equal, equal_in_all = counts.gather(1, digit)[:, 0], in_all.gather(1, digit)[:, 0]
        found = (found << DIGIT_BITS) | digit[:, 0]
    return _Digits(found, below, equal, below_in_all, equal_in_all, remaining)


def _share_of_ties(shards: Sequence[Shard], keys: _Digits) -> Tensor:
    """How many of the weights that tie, and are among the k, lie here: the first ones in the whole tensor's memory."""
    on_cpu = keys.found.device.type == "cpu"
    if on_cpu and bool(((keys.remaining == 0) | (keys.remaining == keys.equal_in_all)).all()):
        return torch.where(keys.remaining == 0, 0, keys.equal)
    n_bits = max(max(shard.extent - 1 for shard in shards).bit_length(), 1)

    def count(found: Tensor, shift: int) -> Tensor:
        rows = zip(shards, keys.found, found, strict=True)
        return torch.stack([_place_digits(shard, key, place, shift) for shard, key, place in rows])

    places = find_digits(shards, keys.remaining, n_bits, count, pooled=False)
    return places.below + places.equal.minimum(places.remaining)


def _place_digits(shard: Shard, key: Tensor, found: Tensor, shift: int) -> Tensor:
    """Counts of the digit at `shift` among the places of the weights with a key, whose higher digits are found."""
    counts = torch.zeros(N_BINS, dtype=torch.int64, device=key.device)
    for start, chunk in enumerate(memory_order(shard.local).split(_CHUNK)):
        tied = reference.has_key(chunk, key)
        if key.device.type == "cpu":
            indices = tied.nonzero()[:, 0]
            tied = torch.ones_like(indices, dtype=torch.bool)
        else:  # the host would have to wait for their number
            indices = torch.arange(chunk.numel(), device=key.device)
        places = _places(shard, indices + start * _CHUNK)
        counted = tied & (places >> shift >> DIGIT_BITS == found)
        counts.scatter_add_(0, places >> shift & (N_BINS - 1), counted.long())
    return counts


def _places(shard: Shard, indices: Tensor) -> Tensor:
    """Where local weights, given by their indices in memory order, lie in the memory of the whole tensor."""
    places = torch.zeros_like(indices)
    for size, stride, along in zip(shard.local.shape, shard.local.stride(), shard.places, strict=True):
        places += along[indices // stride % size] if size > 1 else along
    return places


def _by_groups(shards: Sequence[Shard]) -> list[list[int]]:
    """Those that the same ranks share, by their number: one all-reduce serves them all."""
    indices: dict[object, list[int]] = defaultdict(list)
    for i, shard in enumerate(shards):
        indices[shard.groups, shard.wire].append(i)
    return list(indices.values())


def _add_up(counts: Tensor, shards: Sequence[Shard]) -> Tensor:
    """The counts of all ranks' shards."""
    rows = list(counts.unbind())
    for indices in _by_groups(shards):
        first = shards[indices[0]]
        if first.groups:
            total = torch.stack([rows[i] for i in indices]).to(first.wire)
            for group in first.groups:
                _all_reduce(total, group)
            for i, row in zip(indices, total.to(counts.device), strict=True):
                rows[i] = row
    return torch.stack(rows)


def _all_reduce(counts: Tensor, group: dist.ProcessGroup) -> None:
    dist.all_reduce(counts, group=group)
    for traffic in _counting:
        traffic.n_messages += 1
        traffic.n_bytes += counts.nbytes


def on_device(host: Tensor, device: torch.device) -> Tensor:
    """The host's tensor on a device, without waiting for that."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
