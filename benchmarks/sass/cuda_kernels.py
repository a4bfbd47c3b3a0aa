"""Compile the CUDA C++ kernels with nvcc, as the build does, for GPUs that are not here."""

import ast
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .cubins import Compiled, disassemble, find_tool

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "csrc" / "cuda"


def why_not() -> str:
    """Why they cannot be compiled here; empty if they can."""
    if not FOLDER.is_dir():
        return "their sources are in a checkout alone"
    return "" if find_tool("nvcc") else "no nvcc (CUDA_HOME or PATH)"


def version() -> str | None:
    """Of nvcc; None without it."""
    found = re.search(r"V([\d.]+)", run_nvcc("--version").stdout) if find_tool("nvcc") else None
    return found[1] if found else None


def arguments_of_the_build() -> list[str]:
    """Those of setup.py, which only a build can import."""
    assigned = {
        target.id: node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
    }
    return list(ast.literal_eval(assigned["NVCC_ARGS"]))


def run_nvcc(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(find_tool("nvcc")), *arguments], capture_output=True, text=True)


def compile_sources(architecture: int, stems: Sequence[str]) -> list[Compiled]:
    """The kernels of some sources, in order, with their mangled names.

    Raises:
        ValueError: nvcc does not compile them for that architecture; with the first line that says why.
    """
    options = (*arguments_of_the_build(), f"-arch=sm_{architecture}", "-cubin")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

        def compile_source(stem: str) -> list[Compiled]:
            target = Path(folder, f"{stem}.cubin")
            result = run_nvcc(*options, FOLDER / f"{stem}.cu", "-o", target)
            if result.returncode != 0:
                raise ValueError(f"nvcc: {(result.stderr or result.stdout).strip().splitlines()[0]}")
            return disassemble(target)

        return [kernel for kernels in pool.map(compile_source, stems) for kernel in kernels]


def readable(mangled: str) -> tuple[str, str | None]:
    """The kernel's own name, and the dtype that it is compiled for."""
    [name] = re.findall(r"\d([a-z_]+_kernel)", mangled)
    dtype = re.search(r"B?Float\d+", mangled)
    return name, dtype[0].lower() if dtype else None
