"""How one launch reaches many tensors: a row of addresses per tensor, and a chunk of one tensor per program.

The tables live on the device and are cached by what they hold, so a step over the same addresses copies nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.transfer import on_device

# the number of weights, the address in each of up to five lists, whether all are aligned, the weights of those before
ROW = tl.constexpr(8)
IS_ALIGNED = tl.constexpr(6)
START = tl.constexpr(7)
NUM_WARPS = 8
# A tile with a weight a thread, for unaligned tensors and ends of tensors: predicates make accesses scalar in any case.
NARROW_TILE = tl.constexpr(32 * NUM_WARPS)
WIDEST_ACCESS = 16  # bytes


@dataclass(frozen=True, eq=False)
class AddressTable:
    """Tensors as the kernels take them: `rows` int64 (n_tensors, ROW), `chunks` int32 (n_chunks, 2)."""

    rows: Tensor
    chunks: Tensor
    sizes: tuple[int, ...]

    @property
    def n_chunks(self) -> int:
        return len(self.chunks)


def launch_on(device: torch.device) -> AbstractContextManager[object]:
    """Tables are built for, and kernels launched on, this device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def tile_size(itemsize: int) -> int:
    """How many weights one access per thread moves: enough bytes in flight, in few enough registers."""
    return NUM_WARPS * 32 * WIDEST_ACCESS // itemsize


def address_table(chunk_size: int, *lists: Sequence[Tensor]) -> AddressTable:
    """The table of lists of tensors that belong together; the first gives the sizes, an empty one has address 0.

    Synchronisation: none. New addresses cost one small copy from pinned memory, known ones nothing.
    """
    sizes = tuple(map(Tensor.numel, lists[0]))
    addresses = tuple(tuple(map(Tensor.data_ptr, tensors)) for tensors in lists)
    return table_of_addresses(lists[0][0].device, chunk_size, sizes, addresses)


def table_of_addresses(
    device: torch.device, chunk_size: int, sizes: tuple[int, ...], addresses: tuple[tuple[int, ...], ...]
) -> AddressTable:
    """As `address_table`, of tensors whose sizes and addresses are known."""
    return _remembered(_build_table, device, chunk_size, sizes, addresses)  # type: ignore[no-any-return]


def scratch_table(device: torch.device, chunk_size: int, sizes: tuple[int, ...]) -> AddressTable:
    """The table of places for so many weights each, one after another in one buffer: offsets instead of addresses."""
    return _remembered(_build_table, device, chunk_size, sizes, (_offsets(sizes)[:-1],))


def scratch_size(sizes: tuple[int, ...]) -> int:
    """How many weights the buffer of a `scratch_table` holds."""
    return _offsets(sizes)[-1]


def _offsets(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Multiples of 16 weights, so that an aligned buffer has aligned places."""
    return tuple(accumulate((-(-size // WIDEST_ACCESS) * WIDEST_ACCESS for size in sizes), initial=0))


def _remembered(build: Any, device: torch.device, *key: object) -> Any:
    if device.type != "cuda":
        return build(device, 0, *key)
    if torch.cuda.is_current_stream_capturing():
        # The copy runs at replay, in the graph's own memory: no later call may find it in a cache.
        return build.__wrapped__(device, 0, *key)
    # A copy is ordered before the launches of its own stream only.
    return build(device, torch.cuda.current_stream(device).cuda_stream, *key)


@lru_cache(maxsize=128)
def _build_table(
    device: torch.device, _stream: int, chunk_size: int, sizes: tuple[int, ...], addresses: tuple[tuple[int, ...], ...]
) -> AddressTable:
    rows = torch.zeros(len(sizes), ROW.value, dtype=torch.int64, device="cpu")
    for column, values in enumerate((sizes, *addresses)):
        if values:
            rows[:, column] = torch.tensor(values, device="cpu")
    rows[:, START.value] = rows[:, 0].cumsum(0) - rows[:, 0]
    rows[:, IS_ALIGNED.value] = (rows[:, 1 : IS_ALIGNED.value] % WIDEST_ACCESS == 0).all(1)
    chunks = _remembered(_build_chunks, device, chunk_size, sizes)
    return AddressTable(on_device(rows, device), chunks, sizes)


@lru_cache(maxsize=32)
def _build_chunks(device: torch.device, _stream: int, chunk_size: int, sizes: tuple[int, ...]) -> Tensor:
    """(tensor, chunk within it) of every program; the chunks of a tensor follow each other."""
    n_chunks = torch.tensor([(size + chunk_size - 1) // chunk_size for size in sizes], device="cpu")
    tensor = torch.repeat_interleave(n_chunks)
    first = n_chunks.cumsum(0) - n_chunks
    chunk = torch.arange(len(tensor), device="cpu") - first[tensor]
    return on_device(torch.stack([tensor, chunk], dim=1).int(), device)


@triton.jit
def locate_chunk(rows, chunks, program, CHUNK: tl.constexpr):
    """What a program works on: its tensor, that one's row, the first weight of its chunk, and the weights it has."""
    tensor = tl.load(chunks + 2 * program)
    row = rows + tensor * ROW
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    return tensor, row, start, tl.minimum(tl.load(row) - start, CHUNK).to(tl.int32)


@triton.jit
def is_aligned(row):
    """Whether 16 bytes can be moved at a time in every list: a tensor that cannot costs no other its wide accesses."""
    return tl.load(row + IS_ALIGNED) != 0


@triton.jit
def has_address(row, COLUMN: tl.constexpr):
    """Whether a tensor has one in a list that others are in."""
    return tl.load(row + COLUMN) != 0


@triton.jit
def load_pointer(row, COLUMN: tl.constexpr, TYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    # the hint must stand on the pointer: on the integer address it is lost, and with it the wide loads
    return tl.multiple_of(tl.load(row + COLUMN).to(tl.pointer_type(TYPE)), ALIGNMENT)
