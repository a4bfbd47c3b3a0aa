"""The masks of an optimizer: one bit a weight, each in the memory order that its parameter has now."""

from typing import NamedTuple

import torch
from torch import Tensor

from dsd_kernels import ops
from dsd_kernels.ops.layout import packed_bytes, restride


class _Packed(NamedTuple):
    """Bits, and the shape and strides of the memory order in which they were packed."""

    bits: Tensor
    shape: torch.Size
    strides: tuple[int, ...]


class PackedMasks:
    """{parameter: packed mask}. `dense` is the parameter itself, or the dense copy of one with gaps in memory.

    Of a DTensor, `dense`, bits and masks are those of its local tensor.
    """

    def __init__(self) -> None:
        self._packed: dict[Tensor, _Packed] = {}
        self.version = 0  # counts the changes of which bits stand where; bits written in place are none

    def __contains__(self, p: Tensor) -> bool:
        return p in self._packed

    def bits(self, p: Tensor, dense: Tensor) -> Tensor | None:
        """The bits in the parameter's memory order, which `model.to(memory_format=...)` may have changed; or None."""
        packed = self._packed.get(p)
        if packed is None:
            return None
        if packed.strides != dense.stride() or packed.shape.numel() != dense.numel():
            if packed.shape != dense.shape:
                raise ValueError(
                    f"mask: expected a parameter of shape {tuple(packed.shape)}, as it was when it got its mask, "
                    f"got {tuple(dense.shape)}; set_masks() or densify() it"
                )
            self.set(p, dense, self.unpacked(p))
        return self._packed[p].bits

    def writable_bits(self, p: Tensor, dense: Tensor) -> Tensor:
        """Bits to be written anew: those that exist, so that a captured graph finds them again, or fresh ones."""
        bits = self.bits(p, dense)
        return dense.new_empty((packed_bytes(dense.numel()),), dtype=torch.uint8) if bits is None else bits

    def adopt(self, p: Tensor, dense: Tensor, bits: Tensor) -> None:
        """Take bits that were packed in the memory order of `dense`."""
        if p not in self._packed or self._packed[p].bits is not bits:
            self.version += 1
        self._packed[p] = _Packed(bits, dense.shape, dense.stride())

    def set(self, p: Tensor, dense: Tensor, mask: Tensor) -> None:
        self.adopt(p, dense, ops.pack_mask([restride(mask, dense)])[0])

    def update(self, other: "PackedMasks") -> None:
        """Take the other's masks; bits that fit are written in place, so that a captured graph sees the new mask."""
        for p, new in other._packed.items():
            old = self._packed.get(p)
            if old is not None and old[1:] == new[1:] and old.bits.device == new.bits.device:
                old.bits.copy_(new.bits)
            else:
                self._packed[p] = new
                self.version += 1

    def replace(self, other: "PackedMasks") -> None:
        """As `update`, and drop all that the other does not have."""
        for p in [p for p in self._packed if p not in other]:
            self.drop(p)
        self.update(other)

    def drop(self, p: Tensor) -> None:
        if self._packed.pop(p, None) is not None:
            self.version += 1

    def unpacked(self, p: Tensor) -> Tensor:
        """A bool mask of the parameter's shape, True = keep."""
        return ops.unpack_mask([self._packed[p].bits], [self._like(p)])[0]

    def is_intact(self, p: Tensor) -> bool:
        """Whether the bits are what packing their mask gives: the padding must be zero."""
        mask = self.unpacked(p)
        return bool(torch.equal(ops.pack_mask([mask])[0], self._packed[p].bits))

    def _like(self, p: Tensor) -> Tensor:
        packed = self._packed[p]
        return torch.empty_strided(packed.shape, packed.strides, dtype=torch.bool, device=packed.bits.device)
