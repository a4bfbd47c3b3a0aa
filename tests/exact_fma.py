"""An exact fused multiply-add for Triton's interpreter, which otherwise rounds the product before the sum.

With it the interpreter runs a kernel's `tl.fma` as a GPU does, so that kernels can be compared bitwise on a CPU.
"""

import ctypes
import ctypes.util

import numpy as np

_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.restype = ctypes.c_double
_libm.fma.argtypes = [ctypes.c_double] * 3
_fma64_of_scalars = np.frompyfunc(_libm.fma, 3, 1)


def fma32(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """round(x * y + z) of float32 arrays: the product is exact in float64, the sum is rounded to odd, then cast."""
    with np.errstate(all="ignore"):
        product, z = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
        total = product + z
        back = total - product
        error = (product - (total - back)) + (z - back)
        is_even = (total.view(np.int64) & 1) == 0
        inexact_even = np.isfinite(total) & (error != 0) & is_even
        return np.where(inexact_even, np.nextafter(total, np.sign(error) * np.inf), total).astype(np.float32)


def fma64(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """round(x * y + z) of float64 arrays, by the C library, one by one."""
    with np.errstate(all="ignore"):
        return np.asarray(_fma64_of_scalars(x, y, z), dtype=np.float64)


def install_exact_fma() -> None:
    """Let the interpreter of this process fuse `tl.fma`."""
    from triton.runtime import interpreter

    def create_fma(_builder, x, y, z):
        fma = {np.float32: fma32, np.float64: fma64}[z.data.dtype.type]
        return interpreter.TensorHandle(fma(x.data, y.data, z.data), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = create_fma
