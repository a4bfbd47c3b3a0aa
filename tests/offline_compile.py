"""Compile every Triton kernel for GPUs that are not here, and print what the machine code looks like, as JSON lines.

Run as a program, in a process without TRITON_INTERPRET.
"""

import itertools
import json
import re
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from benchmarks.sass.cubins import ask_cuobjdump, resources
from benchmarks.sass.triton_kernels import STEP_OPTIONS, N, calls_of_ops, compiling_for
from dsd_kernels.ops import triton as ops
from dsd_kernels.ops.layout import packed_bytes

ARCHITECTURES = (80, 90, 100)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# the dtypes of parameters, gradients, momentum and copies, and whether rounding is stochastic
MIXTURES = {
    "bfloat16 with float32 momentum": (BF16, BF16, F32, None, False),
    "float32 masters with bfloat16 copies": (F32, BF16, F32, BF16, False),
    "bfloat16 rounded stochastically": (BF16, BF16, BF16, None, True),
    "float16 with float32 momentum rounded stochastically": (F16, F16, F32, None, True),
}


def call_every_op(dtype: torch.dtype) -> None:
    params, grads, momentum_buffers = ([torch.zeros(N, dtype=dtype)] for _ in range(3))
    masks = ops.pack_mask([torch.ones(N, dtype=torch.bool)])
    step_every_way(params, grads, momentum_buffers, masks, [])
    if dtype == F16:  # the rest sees bits alone, as of bfloat16
        return
    for call in calls_of_ops(dtype).values():
        call()


def step_every_way(*lists: list[torch.Tensor]) -> None:
    """Scalars that change from step to step, scalars on the device, and the least that a step can be."""
    params, grads, *_ = lists
    for lr in (0.1, 0.2, 1.0):
        ops.masked_sgd_(*lists, lr=lr, momentum=lr / 2, **STEP_OPTIONS)
    scalar = torch.ones(1)
    ops.masked_sgd_(*lists, lr=0.0, momentum=0.9, lr_tensor=scalar, grad_scale=scalar, found_inf=scalar, **STEP_OPTIONS)
    ops.masked_sgd_(params, grads, [], [], [], lr=0.1, momentum=0.0, **STEP_OPTIONS)


def step_mixed(param, grad, momentum_buffer, copy, stochastic) -> None:
    dtypes = (param, grad, momentum_buffer, copy)
    params, grads, buffers, copies = ([torch.zeros(N, dtype=dtype)] if dtype else [] for dtype in dtypes)
    masks, seed = [torch.zeros(packed_bytes(N), dtype=torch.uint8)], torch.tensor(0) if stochastic else None
    ops.masked_sgd_(params, grads, buffers, masks, copies, lr=0.1, momentum=0.9, rounding_seed=seed, **STEP_OPTIONS)


def describe(kernel: object, disassemble: bool) -> dict[str, object]:
    """Registers and bytes of stack per thread (spills go there), and the wide accesses if asked: that takes long."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        [(registers, stack)] = resources(Path(file.name)).values()
        code = ask_cuobjdump("-sass", Path(file.name)) if disassemble else ""
    return {
        "signature": kernel.src.signature,
        "registers": registers,
        "stack": stack,
        "shared": kernel.metadata.shared,
        "wide_accesses": Counter(re.findall(r"LDG\.E\.128|STG\.E\.(?:64|128)", code)),
    }


def main() -> None:
    calls = {str(dtype).removeprefix("torch."): partial(call_every_op, dtype) for dtype in DTYPES}
    calls |= {mixture: partial(step_mixed, *dtypes) for mixture, dtypes in MIXTURES.items()}
    for architecture, (storage, call) in itertools.product(ARCHITECTURES, calls.items()):
        with compiling_for(architecture) as compiled:
            call()
        for kernel in dict.fromkeys(compiled):
            row = {"kernel": kernel.name, "storage": storage, "architecture": architecture}
            disassemble = kernel.name == "masked_sgd_kernel" and storage in ("float32", *MIXTURES)
            print(json.dumps(row | describe(kernel, disassemble)), flush=True)


if __name__ == "__main__":
    main()
