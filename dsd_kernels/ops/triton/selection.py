"""The k-th smallest magnitude key of each tensor, or of all together; shared by the ops that select.

A sample brackets it, one read counts and collects what lies inside the bracket, and the same is done with what was
collected until a sample holds all of it (see `bracket`). Tensors whose sample has misled are selected by radix digits
(see `radix_select`). Everything stays on the device, and what is launched depends on the tensors' sizes only.
"""

import torch
from torch import Tensor

from dsd_kernels.ops.triton.bracket import RECORD, gather_kernel, narrow_kernel, split_kernel
from dsd_kernels.ops.triton.formats import Format
from dsd_kernels.ops.triton.launch import launch
from dsd_kernels.ops.triton.radix_select import Thresholds, select_missed
from dsd_kernels.ops.triton.tables import NUM_WARPS, AddressTable, scratch_size, scratch_table

SAMPLE = 16384
SHARE = 16  # one part in so many of what is left is collected at most; about half of that is expected
_NARROW_WARPS = 32
_SPLIT_REGISTERS = 80  # three blocks on an SM; the compiler would take more, to no use


def chunk_size(stored: Format) -> int:
    """How many weights a program of selection and pruning has: as many as fit its threads' registers."""
    return 2048 if stored.itemsize == 8 else 8192


def select_keys(table: AddressTable, k: Tensor, stored: Format) -> Thresholds:
    """Thresholds of the tensors in a table's first column, whose chunks are of `chunk_size`; k is clamped to [0, n].

    Passes: reads every weight once, and again about 3 % of those of tensors of more than SAMPLE weights; those of a
    tensor whose sample misled once more per 8 bits. Synchronisation: none. Memory: up to 1/15 of the weights'.
    """
    search = _Search(table, k, stored)
    search.narrow(table, None, None)
    search.go_on(table.sizes)
    return search.thresholds


def select_pool_key(table: AddressTable, k: Tensor, stored: Format) -> Thresholds:
    """As `select_keys`, of all tensors together: one threshold, and one value of k."""
    n = sum(table.sizes)
    search = _Search(table, k, stored)
    sample = torch.empty(SAMPLE, dtype=stored.integer, device=k.device)
    gather(table, sample, n, stored)
    search.narrow(table, sample, n)
    search.go_on((n,), pooled=True)
    return search.thresholds


def gather(table: AddressTable, sample: Tensor, n_pool: int, stored: Format) -> None:
    launch(
        gather_kernel,
        len(table.sizes),
        table.rows,
        sample,
        n_pool,
        BITS=stored.bits,
        SAMPLE=SAMPLE,
        TILE=32 * NUM_WARPS,
        num_warps=NUM_WARPS,
    )


class _Search:
    """What the kernels tell each other, and the launches of a selection.

    Args:
        table: of the weights.
        k: of each search.
        stored: how weights are stored.
    """

    def __init__(self, table: AddressTable, k: Tensor, stored: Format) -> None:
        self.table, self.k, self.stored = table, k, stored
        self.records = torch.empty(len(k), RECORD.value, dtype=torch.int64, device=k.device)
        self.any_missed = torch.empty(1, dtype=torch.int32, device=k.device)
        self.thresholds = Thresholds(*torch.empty(3, len(k), dtype=torch.int64, device=k.device).unbind())

    def go_on(self, sizes: tuple[int, ...], *, pooled: bool = False) -> None:
        """Split and narrow until a sample holds what is left of each search; last, select what samples missed.

        Args:
            sizes: how many weights each search is among.
            pooled: whether there is one, among all tensors.
        """
        left, source = self.table, None
        for level in _levels(self.k.device, sizes, chunk_size(self.stored)):
            collected = torch.empty(scratch_size(level.sizes), dtype=self.stored.integer, device=self.k.device)
            self.split(left, source, level, collected, pooled=pooled and source is None)
            self.narrow(level, collected, None)
            left, source = level, collected
        if source is not None:
            select_missed(
                self.table, self.records, self.any_missed, self.thresholds, self.stored, chunk_size(self.stored), pooled
            )

    def narrow(self, left: AddressTable, source: Tensor | None, n_pool: int | None) -> None:
        launch(
            narrow_kernel,
            len(self.k),
            left.rows,
            source,
            n_pool,
            self.records,
            self.any_missed,
            *self.thresholds,
            self.k,
            BITS=self.stored.bits,
            NAN_KEY=self.stored.nan_key,
            SAMPLE=SAMPLE,
            num_warps=_NARROW_WARPS,
        )

    def split(
        self, left: AddressTable, source: Tensor | None, level: AddressTable, collected: Tensor, *, pooled: bool
    ) -> None:
        launch(
            split_kernel,
            left.n_chunks,
            left.rows,
            left.chunks,
            source,
            self.records,
            level.rows,
            collected,
            int(not pooled),
            BITS=self.stored.bits,
            TILE=chunk_size(self.stored),
            THREADS=32 * NUM_WARPS,
            num_warps=NUM_WARPS,
            maxnreg=_SPLIT_REGISTERS,
        )


def _levels(device: torch.device, sizes: tuple[int, ...], chunk: int) -> list[AddressTable]:
    """Room for what each split collects, until it is no more than a sample."""
    levels = []
    while max(sizes, default=0) > SAMPLE:
        sizes = tuple(-(-size // SHARE) if size > SAMPLE else 0 for size in sizes)
        levels.append(scratch_table(device, chunk, sizes))
    return levels
