"""The packed layout: bit i % 8 of byte i // 8 is weight i in memory order, padded with zeros to 64-bit words."""

import pytest
import torch
from cases import DTYPES, generator

from dsd_kernels import pack_mask, unpack_mask


def test_literal_bits(backend, device):
    mask = torch.tensor([True, False, False, True, True, False, True, True, False, True], device=device)
    assert pack_mask([mask])[0].tolist() == [0b11011001, 0b00000010, 0, 0, 0, 0, 0, 0]


def test_literal_memory_order(backend, device):
    mask = torch.tensor([[True, False], [True, True], [False, False]], device=device).t().contiguous().t()
    assert mask.stride() == (1, 3)
    assert pack_mask([mask])[0][0].item() == 0b010011


def test_any_byte_but_zero_is_true(backend, device):
    """A bool tensor viewed from other bytes holds bytes that are neither 0 nor 1."""
    bytes_ = torch.arange(200, dtype=torch.uint8, device=device) % 5
    assert torch.equal(pack_mask([bytes_.view(torch.bool)])[0], pack_mask([bytes_ != 0])[0])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool])
def test_unpacking_is_the_inverse_of_packing(backend, device, sizes, dtype):
    masks = [torch.rand(n, generator=generator(n)).to(device) > 0.3 for n in sizes]
    like = [torch.empty(n, dtype=dtype, device=device) for n in sizes]
    packed = pack_mask(masks)
    for n, bits in zip(sizes, packed, strict=True):
        assert bits.shape == ((n + 63) // 64 * 8,)
        padding = unpack_mask([bits], [torch.empty(bits.numel() * 8, device=device)])[0][n:]
        assert not padding.any()
    for mask, unpacked in zip(masks, unpack_mask(packed, like), strict=True):
        assert unpacked.dtype == torch.bool
        assert torch.equal(unpacked, mask)


def test_unpacked_masks_have_the_layout_of_like(backend, device):
    like = torch.empty(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last)
    mask = torch.empty_like(like, dtype=torch.bool).copy_(torch.rand(2, 3, 4, 5, generator=generator()) > 0.5)
    unpacked = unpack_mask(pack_mask([mask]), [like])[0]
    assert unpacked.stride() == like.stride()
    assert torch.equal(unpacked, mask)
