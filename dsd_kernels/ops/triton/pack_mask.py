"""Bool masks to one bit a weight."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.layout import packed_bytes
from dsd_kernels.ops.triton.mask_words import load_mask_pointer, pack_bits
from dsd_kernels.ops.triton.tables import address_table, is_aligned, launch_on, load_pointer, locate_chunk

CHUNK = 4096


def pack_mask(masks: Sequence[Tensor]) -> list[Tensor]:
    """One launch for all masks.

    Passes: reads every bool once, writes every word once. Synchronisation: none.
    """
    packed = [mask.new_empty((packed_bytes(mask.numel()),), dtype=torch.uint8) for mask in masks]
    if not masks:
        return packed
    with launch_on(masks[0].device):
        table = address_table(CHUNK, masks, packed)
        if table.grid != (0,):
            pack_kernel[table.grid](table.rows, table.chunks, CHUNK=CHUNK)
    return packed


@triton.jit
def pack_kernel(rows, chunks, CHUNK: tl.constexpr):
    """Pack one chunk, and the zero bits up to a whole 64-bit word.

    Passes: reads every bool once, writes every word once. Synchronisation: none.
    """
    _, row, start, count = locate_chunk(rows, chunks, tl.program_id(0), CHUNK)
    if (count == CHUNK) & is_aligned(row):
        _pack_chunk(row, start, None, 16, 32, CHUNK)
    else:
        _pack_chunk(row, start, count, 1, 8, CHUNK)


@triton.jit
def _pack_chunk(row, start, count, ALIGNMENT: tl.constexpr, WORD: tl.constexpr, CHUNK: tl.constexpr):
    mask = load_pointer(row, 1, tl.uint8, ALIGNMENT) + start
    packed = load_mask_pointer(row, 2, WORD) + start // WORD
    word = tl.arange(0, CHUNK // WORD)
    weight = word[:, None] * WORD + tl.arange(0, WORD)[None, :]
    # predicates would make the loads scalar
    if count is None:
        tl.store(packed + word, pack_bits(tl.load(mask + weight) != 0))
    else:
        keep = tl.load(mask + weight, mask=weight < count, other=0) != 0
        tl.store(packed + word, pack_bits(keep), mask=word * WORD < (count + 63) // 64 * 64)
