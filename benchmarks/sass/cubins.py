"""What CUDA's tools say of compiled kernels: registers, stack, machine code."""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .machine_code import Kernel, kernels


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture; what it spills lies on its stack."""

    name: str
    registers: int
    stack_bytes: int
    code: Kernel


def find_tool(name: str) -> str | None:
    """In the toolkit, on PATH, or in Triton's package, which brings the disassembler that some toolkits lack."""
    triton = importlib.util.find_spec("triton")
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    folders += [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    if triton is not None and triton.origin is not None:
        folders += [Path(triton.origin).parent / "backends" / "nvidia" / "bin"]
    return next(filter(None, (shutil.which(name, path=folder) for folder in folders)), None)


def ask_cuobjdump(question: str, file: Path) -> str:
    tool = find_tool("cuobjdump")
    if tool is None:
        raise FileNotFoundError("no cuobjdump (CUDA_HOME, PATH or Triton)")
    return subprocess.run([tool, question, file], capture_output=True, text=True, check=True).stdout


def resources(cubin: Path) -> dict[str, tuple[int, int]]:
    """Registers, and bytes of stack a thread, of each kernel in the file."""
    said = ask_cuobjdump("-res-usage", cubin)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", said)
    return {name: (int(registers), int(stack)) for name, registers, stack in found}


def disassemble(cubin: Path) -> list[Compiled]:
    used = resources(cubin)
    return [Compiled(name, *used[name], code) for name, code in kernels(ask_cuobjdump("-sass", cubin))]
