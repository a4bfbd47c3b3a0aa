"""Every CUDA C++ kernel compiles for GPUs that are not here: no spills, few registers, wide accesses in hot loops."""

import os
import re
import subprocess
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.sass.cubins import ask_cuobjdump, find_tool
from benchmarks.sass.cuda_kernels import FOLDER, arguments_of_the_build

SOURCES = sorted(FOLDER.glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FULL_OCCUPANCY = 32  # registers with which an SM holds all the threads it can
MAX_REGISTERS = 64  # four blocks of 256 threads
MOST_REGISTERS = {"masked_sgd_kernel": FULL_OCCUPANCY, "prune_kernel": FULL_OCCUPANCY, "bracket_kernel": 40}
NVCC, CUOBJDUMP = find_tool("nvcc"), find_tool("cuobjdump")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc (CUDA_HOME or PATH)")


def architectures():
    known = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in ARCHITECTURES if name in known]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What ptxas says of each kernel, and the file with the machine code of each source."""
    folder = tmp_path_factory.mktemp("cuda")
    codes = [f"-gencode=arch=compute_{name[3:]},code={name}" for name in architectures()]
    command = [NVCC, *arguments_of_the_build(), *codes, "-Xptxas=-v", "-fatbin"]

    def compile_source(source):
        target = folder / f"{source.stem}.fatbin"
        return subprocess.run([*command, source, "-o", target], capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(compile_source, SOURCES))
    for result in results:
        assert result.returncode == 0, result.stderr
        assert "warning" not in result.stderr, result.stderr
    return folder, "".join(result.stderr for result in results)


def kernels_of(said):
    """(mangled name, architecture, bytes of stack and spills, registers) of each that ptxas has compiled."""
    pattern = (
        r"Compiling entry function '(\S+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    for name, architecture, *numbers in re.findall(pattern, said, re.DOTALL):
        *spilled, registers = map(int, numbers)
        yield name, architecture, spilled, registers


def test_no_kernel_spills_and_the_hot_ones_of_float32_fill_the_gpu(compiled):
    _, said = compiled
    found = defaultdict(set)
    for name, architecture, spilled, registers in kernels_of(said):
        [kernel] = re.findall(r"\d([a-z_]+_kernel)", name)
        assert spilled == [0, 0, 0], (name, architecture)
        most = MOST_REGISTERS.get(kernel, MAX_REGISTERS) if "Float32" in name else MAX_REGISTERS
        assert registers <= most, (name, architecture)
        found[architecture].add(kernel)
    n_written = sum(path.read_text().count("__global__") for path in SOURCES)
    assert {architecture: len(names) for architecture, names in found.items()} == dict.fromkeys(
        architectures(), n_written
    )


def accesses(path):
    """For each architecture and kernel, how many accesses there are of which width in its machine code."""
    found = defaultdict(Counter)
    architecture = kernel = None
    for line in ask_cuobjdump("-sass", path).splitlines():
        if match := re.match(r"\s*arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            kernel = match[1]
        elif match := re.search(r"\b(?:LDG|STG|LDL|STL)\.?\S*", line):
            found[architecture, kernel][match[0]] += 1
    return found


@pytest.mark.skipif(CUOBJDUMP is None, reason="no cuobjdump (CUDA_HOME, PATH or Triton)")
def test_hot_loops_move_128_bits(compiled):
    folder, _ = compiled
    # loads and stores of weights and momentum, in each loop over whole vectors
    expected = {
        "masked_sgd_kernel": (3, 2),
        "bracket_kernel": (1, 0),
        "digit_kernel": (1, 0),
        "magnitude_histogram_kernel": (1, 0),
        "prune_kernel": (2, 2),
    }
    seen = Counter()
    for stem in ("masked_sgd", "select", "magnitude_histogram", "prune"):
        for (architecture, kernel), widths in accesses(folder / f"{stem}.fatbin").items():
            name = next((name for name in expected if name in kernel), None)
            if name is None or "Float32" not in kernel:
                continue
            loads, stores = expected[name]
            assert widths["LDG.E.128"] >= loads, (kernel, architecture, widths)
            assert widths["STG.E.128"] >= stores, (kernel, architecture, widths)
            assert not any(width.startswith(("LDL", "STL")) for width in widths), (kernel, architecture, widths)
            seen[name] += 1
    assert seen == dict.fromkeys(expected, len(architectures()))
