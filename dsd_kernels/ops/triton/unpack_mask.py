"""Packed masks back to one bool a weight."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.triton.mask_words import load_mask_pointer, unpack_bits
from dsd_kernels.ops.triton.tables import address_table, is_aligned, launch_on, load_pointer, locate_chunk

CHUNK = 4096


def unpack_mask(packed: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """One launch for all masks.

    Passes: reads every word once, writes every bool once. Synchronisation: none.
    """
    masks = [torch.empty_like(tensor, dtype=torch.bool) for tensor in like]
    if not masks:
        return masks
    with launch_on(masks[0].device):
        table = address_table(CHUNK, masks, packed)
        if table.grid != (0,):
            unpack_kernel[table.grid](table.rows, table.chunks, CHUNK=CHUNK)
    return masks


@triton.jit
def unpack_kernel(rows, chunks, CHUNK: tl.constexpr):
    """Unpack one chunk.

    Passes: reads every word once, writes every bool once. Synchronisation: none.
    """
    _, row, start, count = locate_chunk(rows, chunks, tl.program_id(0), CHUNK)
    if (count == CHUNK) & is_aligned(row):
        _unpack_chunk(row, start, None, 16, 32, CHUNK)
    else:
        _unpack_chunk(row, start, count, 1, 8, CHUNK)


@triton.jit
def _unpack_chunk(row, start, count, ALIGNMENT: tl.constexpr, WORD: tl.constexpr, CHUNK: tl.constexpr):
    mask = load_pointer(row, 1, tl.uint8, ALIGNMENT) + start
    packed = load_mask_pointer(row, 2, WORD) + start // WORD
    word = tl.arange(0, CHUNK // WORD)[:, None]
    weight = word * WORD + tl.arange(0, WORD)[None, :]
    # predicates would make the accesses scalar
    if count is None:
        tl.store(mask + weight, unpack_bits(tl.load(packed + word), WORD))
    else:
        keep = unpack_bits(tl.load(packed + word, mask=word * WORD < count), WORD)
        tl.store(mask + weight, keep, mask=weight < count)
