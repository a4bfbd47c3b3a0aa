#!/bin/sh
# On a CUDA machine, with its own Python and torch, without network: build, test on the GPU, look for races, measure.
# Usage: sh benchmarks/gpu.sh [build] [test] [sanitize] [bench]     default: all four, in 8 minutes as planned
# PYTHON chooses the interpreter, RESULTS the folder of the JSON, DSD_COMMIT names the commit of a copy without git.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-benchmarks/results}
TEST_SECONDS=240
SANITIZE_SECONDS=60  # for each tool

fail() {
    echo "gpu.sh: $1" >&2
    exit 1
}

build() {
    if command -v "${CXX:-g++}" >/dev/null; then
        parts=cpu
        [ ! -d csrc/cuda ] || ! command -v nvcc >/dev/null || parts=cuda
        DSD_BUILD=$parts "$PYTHON" setup.py --quiet build_ext --inplace
    else
        echo "no C++ compiler: the CPU runs on the reference, the GPU on Triton all the same"
    fi
}

# Prints the packages that a test file imports and this machine lacks.
lacking() {
    "$PYTHON" - "$1" <<'PYTHON_CODE'
import ast, importlib.util, sys

sys.path.insert(0, "tests")
modules = set()
for node in ast.walk(ast.parse(open(sys.argv[1]).read())):
    if isinstance(node, ast.Import):
        modules |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        modules.add(node.module.split(".")[0])
print(*sorted(name for name in modules if importlib.util.find_spec(name) is None))
PYTHON_CODE
}

# The files whose tests run on a GPU where there is one, without those that compile for other GPUs.
run_tests() {
    files=
    for file in tests/test_backends.py tests/test_triton.py $(grep -l '^def test.*(backend, device' tests/test_*.py); do
        missing=$(lacking "$file")
        if [ -z "$missing" ]; then
            files="$files $file"
        else
            echo "left out: $file needs $missing, which is not installed"
        fi
    done
    ls dsd_kernels/_C.* >/dev/null 2>&1 || export DSD_BUILD=python
    # addopts name plugins that may not be there; without the extension, importing the package warns
    # shellcheck disable=SC2086
    timeout -k 10 "$TEST_SECONDS" "$PYTHON" -m pytest -q -o addopts= -p no:cacheprovider \
        -k "not compiles_for_every_gpu and not moves_128_bits" \
        -W "default:dsd_kernels runs its slow reference:RuntimeWarning" $files
}

# Reads and writes out of bounds, and races in shared memory, in one small case of every op.
sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "left out: compute-sanitizer is not on the PATH; it comes with the CUDA toolkit"
        return
    fi
    for tool in memcheck racecheck; do
        timeout -k 10 "$SANITIZE_SECONDS" compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$PYTHON" -W "default:dsd_kernels runs its slow reference:RuntimeWarning" -m benchmarks.sanitize
    done
}

bench() {
    name=$("$PYTHON" -c "import re, torch; print(re.sub('[^a-z0-9]+', '-', torch.cuda.get_device_name().lower()))")
    "$PYTHON" -m benchmarks --full --device cuda --seconds 1 --output "$RESULTS/$name.json"
    echo
    "$PYTHON" -m benchmarks --table "$RESULTS/$name.json"
}

[ $# -gt 0 ] || set -- build test sanitize bench
for part in "$@"; do
    case $part in build | test | sanitize | bench) ;; *) fail "expected build, test, sanitize or bench, got '$part'" ;; esac
done
"$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null ||
    fail "needs a GPU: with '$PYTHON', torch is not installed or torch.cuda.is_available() is not True"

"$PYTHON" -W ignore -c "from benchmarks import machine; print(machine.one_line(machine.describe('cuda')))"
for part in "$@"; do
    echo "--- $part"
    case $part in build) build ;; test) run_tests ;; sanitize) sanitize ;; bench) bench ;; esac
done
