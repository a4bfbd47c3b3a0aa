#!/bin/sh
# On a CUDA machine, with its own Python and torch, without network: build, test on the GPU, look for races, measure.
# Usage: sh benchmarks/gpu.sh [build] [test] [sanitize] [bench]     default: all four
# A part that fails stops no other; the last line names those that did, and then the exit status is 1.
# PYTHON chooses the interpreter, RESULTS the folder of the JSON, DSD_COMMIT names the commit of a copy without git.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-benchmarks/results}
TEST_SECONDS=240
SANITIZE_SECONDS=120  # for each tool
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin  # nvcc and compute-sanitizer, where setup.py looks too

fail() {
    echo "gpu.sh: $1" >&2
    exit 1
}

build() {
    if ! command -v "${CXX:-g++}" >/dev/null; then
        echo "no C++ compiler: the CPU runs on the reference, the GPU on Triton all the same"
    elif [ -d csrc/cuda ] && command -v nvcc >/dev/null; then
        rm -f dsd_kernels/_C_cuda.*  # an old one would be tested and measured in place of what does not build
        build_of cuda && return
        echo "the CUDA C++ kernels do not build; now the C++ kernels for the CPU alone" >&2
        build_of cpu
        return 1
    else
        build_of cpu
    fi
}

build_of() {
    DSD_BUILD=$1 "$PYTHON" setup.py --quiet build_ext --inplace
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
    if ! "$PYTHON" -c "import pytest" 2>/dev/null; then
        echo "left out: '$PYTHON' has no pytest"
        return
    fi
    by_device=$(grep -l '^def test.*(backend, device' tests/test_*.py)
    for file in tests/test_backends.py tests/test_triton.py $by_device tests/test_no_synchronisation.py \
        tests/test_very_large.py; do
        missing=$(lacking "$file")
        if [ -z "$missing" ]; then
            files="$files $file"
        else
            echo "left out: $file needs $missing, which is not installed"
        fi
    done
    if [ -z "$files" ]; then  # without a file, pytest would run all tests
        echo "left out: there is no test file whose packages are all installed"
        return
    fi
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
    status=0
    for tool in memcheck racecheck; do
        sanitize_with "$tool" || status=1
    done
    return "$status"
}

# Every tensor has an allocation of its own, so that one that is overrun does not end in the next; torch itself makes
# calls that fail.
sanitize_with() {
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 10 "$SANITIZE_SECONDS" \
        compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 1 \
        "$PYTHON" -W "default:dsd_kernels runs its slow reference:RuntimeWarning" -m benchmarks.sanitize
}

bench() {
    name=$("$PYTHON" -c "import re, torch; print(re.sub('[^a-z0-9]+', '-', torch.cuda.get_device_name().lower()))") ||
        return
    status=0
    { "$PYTHON" -m benchmarks --full --device cuda --seconds 1 --output "$RESULTS/$name.json" &&
        show "$name"; } || status=1
    if ls dsd_kernels/_C_cuda.* >/dev/null 2>&1; then
        echo "the CUDA C++ kernels, in place of those that serve by default:"
        { DSD_KERNELS_BACKEND=compiled \
            "$PYTHON" -m benchmarks --full --device cuda --seconds 1 --cases step,select,prune \
            --output "$RESULTS/$name-compiled.json" && show "$name-compiled" && compare_backends "$name"; } || status=1
    fi
    return "$status"
}

# Which should serve by default (dsd_kernels/ops/backends.py) is read off here.
compare_backends() {
    [ -f "$RESULTS/$1.json" ] || return 0
    echo
    echo "A: what serves by default; B: CUDA C++"
    "$PYTHON" -m benchmarks --compare "$RESULTS/$1.json" "$RESULTS/$1-compiled.json"
}

show() {
    echo
    "$PYTHON" -m benchmarks --table "$RESULTS/$1.json"
}

[ $# -gt 0 ] || set -- build test sanitize bench
for part in "$@"; do
    case $part in build | test | sanitize | bench) ;; *) fail "expected build, test, sanitize or bench, got '$part'" ;; esac
done
"$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null ||
    fail "needs a GPU: with '$PYTHON', torch is not installed or torch.cuda.is_available() is not True"

"$PYTHON" -W ignore -c "from benchmarks import machine; print(machine.one_line(machine.describe('cuda')))"
failed=
for part in "$@"; do
    echo "--- $part"
    case $part in
        build) build ;;
        test) run_tests ;;
        sanitize) sanitize ;;
        bench) bench ;;
    esac || failed="$failed $part"
done
[ -z "$failed" ] || fail "failed:$failed"
