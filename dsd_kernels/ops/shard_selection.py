"""Exact selection over tensors of which every rank holds a shard: digit histograms are added up, weights stay at home.

The k-th magnitude of a whole tensor is found digit by digit: each rank counts the digits of its own weights, one
all-reduce adds the counts of all tensors up, and every rank picks the same digit. Weights that tie at the threshold are
told apart by their place in the whole tensor, found in the same way, so that the set is that of one process.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from dsd_kernels.ops import reference
from dsd_kernels.ops.digits import N_BINS, Digits, find_digits
from dsd_kernels.ops.layout import memory_order
from dsd_kernels.ops.reference import DIGIT_BITS
from dsd_kernels.ops.transfer import on_device

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
        and one for every 8 bits of the largest index where ties are told apart. On the CPU only tensors with ties to
        break take part in these last rounds; a GPU is not asked, so there is no host synchronisation.

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
    return reference.counts_in_pool(keys.below_in_all, keys.equal_in_all, keys.remaining)


def _find_keys(shards: Sequence[Shard], k: Tensor, *, pooled: bool) -> Digits:
    weights = [shard.local for shard in shards]
    key_bits = weights[0].dtype.itemsize * 8 - 1
    count = partial(torch.ops.dsd_kernels.magnitude_histogram, weights)
    return find_digits(len(shards), k, key_bits, count, partial(_add_up, shards=shards), pooled=pooled)


def _share_of_ties(shards: Sequence[Shard], keys: Digits) -> Tensor:
    """How many of the weights that tie, and are among the k, lie here: the first ones in the whole tensor's memory."""
    shares = list(torch.where(keys.remaining == 0, 0, keys.equal).unbind())  # right where all or none are among the k
    rows: Sequence[int] = range(len(shards))
    if _is_read_at_once(keys.found):
        rows = ((keys.remaining != 0) & (keys.remaining != keys.equal_in_all)).nonzero()[:, 0].tolist()
    if rows:
        key, remaining = (torch.stack([values[i] for i in rows]) for values in (keys.found, keys.remaining))
        for i, share in zip(rows, _count_first_ties([shards[i] for i in rows], key, remaining), strict=True):
            shares[i] = share
    return torch.stack(shares)


def _count_first_ties(shards: Sequence[Shard], keys: Tensor, n: Tensor) -> Tensor:
    """Of each whole tensor's first n weights with its key, how many lie here."""
    n_bits = max(max(shard.extent - 1 for shard in shards).bit_length(), 1)
    ties = [_Ties(shard, key) for shard, key in zip(shards, keys, strict=True)]

    def count(found: Tensor, shift: int) -> Tensor:
        return torch.stack([own.count_digits(place, shift) for own, place in zip(ties, found, strict=True)])

    places = find_digits(len(shards), n, n_bits, count, partial(_add_up, shards=shards))
    return places.below + places.equal.minimum(places.remaining)


def _is_read_at_once(values: Tensor) -> bool:
    """Whether the host may look at values: on a GPU it would have to wait for them."""
    return values.device.type == "cpu"


class _Ties:
    """The places of a shard's weights with a key: kept if the host may know how many; else found for each digit."""

    def __init__(self, shard: Shard, key: Tensor) -> None:
        self._shard, self._key = shard, key
        self._are_counted = _is_read_at_once(key)
        self._kept = list(self._find()) if self._are_counted else []

    def count_digits(self, found: Tensor, shift: int) -> Tensor:
        """Counts of the digit at `shift` among the places whose higher digits are found."""
        counts = torch.zeros(N_BINS, dtype=torch.int64, device=found.device)
        for places, tied in self._kept or self._find():
            counted = tied & (places >> shift >> DIGIT_BITS == found)
            counts.scatter_add_(0, places >> shift & (N_BINS - 1), counted.long())
        return counts

    def _find(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Places, and which of them count: chosen by a mask where the host would have to wait for their number."""
        for start, chunk in enumerate(memory_order(self._shard.local).split(_CHUNK)):
            tied = reference.has_key(chunk, self._key)
            if self._are_counted:
                indices = tied.nonzero()[:, 0]
                tied = torch.ones_like(indices, dtype=torch.bool)
            else:
                indices = torch.arange(chunk.numel(), device=chunk.device)
            yield _places(self._shard, indices + start * _CHUNK), tied


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
