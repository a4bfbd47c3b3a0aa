"""The masks of an optimizer: one bit a weight, each in the memory order that its parameter has now."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dsd_kernels import ops
from dsd_kernels.ops.layout import packed_bytes, restride


class _Packed(NamedTuple):
    bits: Tensor
    strides: tuple[int, ...]  # of the memory order in which the bits were packed


class PackedMasks:
    """{parameter: packed mask}. `dense` is the parameter itself, or the dense copy of one with gaps in memory."""

    def __init__(self) -> None:
        self._packed: dict[Tensor, _Packed] = {}

    def __contains__(self, p: Tensor) -> bool:
        return p in self._packed

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._packed)

    def bits(self, p: Tensor, dense: Tensor) -> Tensor:
        """The bits in the parameter's memory order, which `model.to(memory_format=...)` may have changed."""
        if self._packed[p].strides != dense.stride():
            self.set(p, dense, self.unpacked(p))
        return self._packed[p].bits

    def writable_bits(self, p: Tensor, dense: Tensor) -> Tensor:
        """Bits to be written anew: those that exist, so that a captured graph finds them again, or fresh ones."""
        if p in self._packed:
            return self.bits(p, dense)
        return dense.new_empty((packed_bytes(dense.numel()),), dtype=torch.uint8)

    def adopt(self, p: Tensor, dense: Tensor, bits: Tensor) -> None:
        """Take bits that were packed in the memory order of `dense`."""
        self._packed[p] = _Packed(bits, dense.stride())

    def set(self, p: Tensor, dense: Tensor, mask: Tensor) -> None:
        self.adopt(p, dense, ops.pack_mask([restride(mask, dense)])[0])

    def drop(self, p: Tensor) -> None:
        self._packed.pop(p, None)

    def unpacked(self, p: Tensor) -> Tensor:
        """A bool mask of the parameter's shape, True = keep."""
        return ops.unpack_mask([self._packed[p].bits], [self._like(p)])[0]

    def is_intact(self, p: Tensor) -> bool:
        """Whether the bits are what packing their mask gives: the padding must be zero."""
        mask = self.unpacked(p)
        return bool(torch.equal(ops.pack_mask([mask])[0], self._packed[p].bits))

    def _like(self, p: Tensor) -> Tensor:
        return torch.empty_strided(p.shape, self._packed[p].strides, dtype=torch.bool, device=p.device)
