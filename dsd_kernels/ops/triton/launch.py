"""Launches at a fraction of the host time of Triton's own: a kernel compiled for such arguments is called by itself."""

from typing import Any

from torch import Tensor
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

_compiled: dict[tuple[object, ...], tuple[CompiledKernel, tuple[object, ...]]] = {}


def launch(kernel: Any, n_programs: int, *arguments: object, num_warps: int = 4, **constants: Any) -> None:
    """Launch as many programs of a kernel; its arguments come in order, its constants and options by name.

    The first launch for such arguments, and every one in the interpreter, goes through Triton. `arguments` may be
    tensors, None, floats and integers that are not specialised. Synchronisation: none.
    """
    if not isinstance(kernel, JITFunction):
        kernel[(n_programs,)](*arguments, num_warps=num_warps, **constants)
        return
    key = (kernel, driver.active.get_current_device(), num_warps, *constants.items(), *map(_kind, arguments))
    known = _compiled.get(key)
    if known is None:
        compiled = kernel[(n_programs,)](*arguments, num_warps=num_warps, **constants)
        if isinstance(compiled, CompiledKernel):
            names = kernel.arg_names[len(arguments) :]
            _compiled[key] = compiled, tuple(constants[name] for name in names)
    else:
        compiled, values = known
        compiled[(n_programs, 1, 1)](*arguments, *values)


def _kind(argument: object) -> object:
    """What Triton compiles for: a dtype and whether addresses are multiples of 16, whether an integer has 32 bits."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return int, -(2**31) <= argument < 2**31
    return type(argument)
