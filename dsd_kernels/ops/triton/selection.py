"""The k-th smallest magnitude key of each tensor; shared by the ops that select.

A sample brackets it, one read counts and collects what lies inside the bracket, and the same is done with what was
collected until a sample holds all of it (see `bracket`). Tensors whose sample has misled are selected by radix digits
(see `radix_select`). Everything stays on the device, and what is launched depends on the tensors' sizes only.
"""

import torch
from torch import Tensor

from dsd_kernels.ops.triton.bracket import RECORD, narrow_kernel, split_kernel
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
    return 4096 if stored.itemsize == 8 else 8192


def select_keys(table: AddressTable, k: Tensor, stored: Format) -> Thresholds:
    """Thresholds of the tensors in a table's first column, whose chunks are of `chunk_size`; k is clamped to [0, n].

    Passes: reads every weight once, and again about 3 % of those of tensors of more than SAMPLE weights; those of a
    tensor whose sample misled once more per 8 bits. Synchronisation: none. Memory: up to 1/15 of the weights'.
    """
    records = torch.empty(len(k), RECORD.value, dtype=torch.int64, device=k.device)
    any_missed = torch.empty(1, dtype=torch.int32, device=k.device)
    thresholds = Thresholds(*torch.empty(3, len(k), dtype=torch.int64, device=k.device).unbind())
    levels = _levels(table, chunk_size(stored))
    narrow(table, None, records, any_missed, thresholds, k, stored)
    left, source = table, None
    for level in levels:
        collected = torch.empty(scratch_size(level.sizes), dtype=stored.integer, device=k.device)
        split(left, source, records, level, collected, stored)
        narrow(level, collected, records, any_missed, thresholds, k, stored)
        left, source = level, collected
    if levels:
        select_missed(table, records, any_missed, thresholds, k, stored, chunk_size(stored))
    return thresholds


def _levels(table: AddressTable, chunk: int) -> list[AddressTable]:
    """Room for what each split collects, until it is no more than a sample."""
    levels, sizes = [], table.sizes
    while max(sizes, default=0) > SAMPLE:
        sizes = tuple(-(-size // SHARE) if size > SAMPLE else 0 for size in sizes)
        levels.append(scratch_table(table.rows.device, chunk, sizes))
    return levels


def narrow(
    left: AddressTable,
    source: Tensor | None,
    records: Tensor,
    any_missed: Tensor,
    thresholds: Thresholds,
    k: Tensor,
    stored: Format,
) -> None:
    launch(
        narrow_kernel,
        len(k),
        left.rows,
        source,
        records,
        any_missed,
        *thresholds,
        k,
        BITS=stored.bits,
        NAN_KEY=stored.nan_key,
        SAMPLE=SAMPLE,
        num_warps=_NARROW_WARPS,
    )


def split(
    left: AddressTable, source: Tensor | None, records: Tensor, level: AddressTable, collected: Tensor, stored: Format
) -> None:
    launch(
        split_kernel,
        left.n_chunks,
        left.rows,
        left.chunks,
        source,
        records,
        level.rows,
        collected,
        BITS=stored.bits,
        TILE=chunk_size(stored),
        THREADS=32 * NUM_WARPS,
        num_warps=NUM_WARPS,
        maxnreg=_SPLIT_REGISTERS,
    )
