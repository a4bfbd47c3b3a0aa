"""P6 without a GPU: the CUDA C++ kernels, compiled for the host, run the tests of the ops bit for bit.

cuda_on_host/cuda_runtime.h says how. What only a GPU shows, it does not: memory order between threads, speed.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[1]
SUPPORT = ROOT / "tests" / "cuda_on_host"
COMPILER = os.environ.get("CXX", "g++")
ARGUMENTS = ["-O1", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", f"-I{SUPPORT}"]
TESTS = (
    "masked_sgd",
    "masked_sgd_mixed",
    "masked_sgd_rounding",
    "step_plan",
    "pack_mask",
    "selection",
    "magnitude_histogram",
    "op_contract",
)

pytestmark = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER})"),
    pytest.mark.skipif(sys.platform != "linux", reason="fibers are ucontext's"),
]


def run(*command, **environment):
    result = subprocess.run(
        list(map(str, command)), env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The CUDA extension, which takes tensors on the CPU."""
    folder = tmp_path_factory.mktemp("cuda_on_host")
    torch_arguments = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-include", "torch_on_host.h"]
    torch_arguments += [f"-I{path}" for path in include_paths()]
    csrc = ROOT / "csrc" / "cuda"

    def compile_source(source):
        arguments = torch_arguments if source.suffix == ".cpp" else []
        run(COMPILER, *ARGUMENTS, *arguments, "-x", "c++", "-c", source, "-o", folder / f"{source.name}.o")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_source, (*csrc.glob("*.cu"), *csrc.rglob("*.cpp"))))
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    run(COMPILER, "-shared", *folder.glob("*.o"), *libraries, "-o", folder / "cuda_on_host.so")
    return folder / "cuda_on_host.so"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests run on the GPU itself")
def test_the_kernels_pass_the_tests_of_the_ops(library):
    # of torch.compile there is nothing new here
    chosen = "(compiled or step_plan or edges) and not ([reference or [triton or graph or opcheck)"
    output = run(
        *(sys.executable, "-m", "pytest", "-k", chosen, "-p", "no:cacheprovider", "-p", "plugin", "-p", "conftest"),
        *(ROOT / "tests" / f"test_{name}.py" for name in TESTS),
        SUPPORT / "edges.py",
        DSD_CUDA_ON_HOST=str(library),
        PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "tests", SUPPORT))),
    )
    assert " passed" in output, output
