"""Compile Triton kernels for GPUs that are not here: launchers run as they would on a GPU, and nothing is launched.

A driver that knows no device makes Triton compile each launch. Kernels must not be interpreted (TRITON_INTERPRET).
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dsd_kernels.ops import triton as ops
from dsd_kernels.ops.layout import packed_bytes

from .cubins import Compiled, disassemble

N = 20_000  # weights: more than a sample of a selection
STEP_OPTIONS: dict[str, Any] = {
    "dampening": 0.1,
    "weight_decay": 0.1,
    "nesterov": True,
    "maximize": True,
    "mask_momentum": True,
}


class OfflineDriver:
    """What `JITFunction.run` asks of a driver before it launches; the device's number is the architecture's."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


@contextmanager
def compiling_for(architecture: int) -> Iterator[list[Any]]:
    """Within it, launches compile and run nothing; the list takes each launch's `CompiledKernel`.

    The driver stays, since Triton makes another only where there is a GPU: use this in a process of its own.
    """
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:  # noqa: ARG001
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append(kernel)
        return kernel

    def launch_nothing(*_: Any) -> None:
        return None

    driver.set_active(OfflineDriver(architecture))
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(CompiledKernel, "__getitem__", return_value=launch_nothing),
    ):
        yield compiled


def compile_ops(architecture: int, dtype: torch.dtype, names: Iterable[str]) -> list[Compiled]:
    """The kernels of some ops, in order, each as often as it was compiled for other constants."""
    calls = calls_of_ops(dtype)
    with compiling_for(architecture) as compiled:
        for name in names:
            calls[name]()
    return [found for kernel in dict.fromkeys(compiled) for found in inspect(kernel)]


def calls_of_ops(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each op on one tensor, as most steps and prunings call it."""
    params, grads, momentum_buffers = ([torch.zeros(N, dtype=dtype)] for _ in range(3))
    bools, masks = [torch.ones(N, dtype=torch.bool)], [torch.zeros(packed_bytes(N), dtype=torch.uint8)]
    k = torch.tensor([N // 2])
    return {
        "masked_sgd": lambda: ops.masked_sgd_(
            params, grads, momentum_buffers, masks, [], lr=0.1, momentum=0.9, **STEP_OPTIONS
        ),
        "kth_magnitude": lambda: ops.kth_magnitude(params, k),
        "global_counts": lambda: ops.global_counts(params, k),
        "magnitude_histogram": lambda: ops.magnitude_histogram(params, torch.tensor([0]), 0),
        "prune": lambda: ops.prune_(params, momentum_buffers, masks, k),
        "pack_mask": lambda: ops.pack_mask(bools),
        "unpack_mask": lambda: ops.unpack_mask(masks, params),
    }


def inspect(kernel: Any) -> list[Compiled]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return disassemble(Path(file.name))
