"""Every Triton kernel compiles for GPUs that are not here: no spills, few registers, wide accesses, no recompiling."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cases import DTYPES

pytest.importorskip("triton")

ARCHITECTURES = (80, 90, 100)
MAX_REGISTERS = 80  # three blocks of 256 threads on an SM
MAX_STEP_REGISTERS = 48  # five blocks, whose loads keep 60 KB on the way: twice what the latency of memory asks for


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory):
    """What offline_compile.py says of every kernel, in its own process: here the kernels are interpreted."""
    root = Path(__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "DSD_KERNELS_BACKEND": "reference",
    }
    environment.pop("TRITON_INTERPRET", None)
    program = [sys.executable, "-W", "error", root / "tests" / "offline_compile.py"]
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_for_every_gpu_without_spills(machine_code, architecture):
    rows = [row for row in machine_code if row["architecture"] == architecture]
    assert len({row["kernel"] for row in rows}) == 13
    assert len({row["storage"] for row in rows}) == len(DTYPES) + len(MIXTURES)
    for row in rows:
        assert row["stack"] == 0, row
        assert row["registers"] <= MAX_REGISTERS, row


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_float32_step_moves_128_bits_in_few_registers(machine_code, architecture):
    rows = [r for r in machine_code if (r["kernel"], r["storage"]) == ("masked_sgd_kernel", "float32")]
    rows = [r for r in rows if r["architecture"] == architecture]
    for row, (n_loads, n_stores) in zip(rows, [(3, 2), (3, 2), (2, 1)], strict=True):  # the last has no momentum
        assert row["wide_accesses"] == {"LDG.E.128": n_loads, "STG.E.128": n_stores}
        assert row["registers"] <= MAX_STEP_REGISTERS


# wide accesses by bytes: loads of 16, stores of 16 and of 8, which is four values as the float32 beside them have
MIXTURES = {
    "bfloat16 with float32 momentum": {"LDG.E.128": 1, "STG.E.128": 1, "STG.E.64": 1},
    "float32 masters with bfloat16 copies": {"LDG.E.128": 2, "STG.E.128": 2, "STG.E.64": 1},
    "bfloat16 rounded stochastically": {"LDG.E.128": 3, "STG.E.128": 2},
    "float16 with float32 momentum rounded stochastically": {"LDG.E.128": 1, "STG.E.128": 1, "STG.E.64": 1},
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_step_of_mixed_dtypes_moves_whole_words_in_one_layout(machine_code, mixture):
    rows = [row for row in machine_code if row["storage"] == mixture]
    assert [row["architecture"] for row in rows] == list(ARCHITECTURES)
    for row in rows:
        assert row["wide_accesses"] == MIXTURES[mixture], row
        assert row["shared"] == 0, row  # nothing passes through shared memory from one layout to another


def test_a_new_learning_rate_compiles_nothing(machine_code):
    """offline_compile.py steps with three learning rates, with device scalars, and in the plainest way."""
    steps = [row for row in machine_code if row["kernel"] == "masked_sgd_kernel"]
    compiled = Counter((row["architecture"], row["storage"]) for row in steps if row["storage"] not in MIXTURES)
    assert len(compiled) == len(ARCHITECTURES) * len(DTYPES)
    assert set(compiled.values()) == {3}


def test_the_step_takes_its_scalars_in_double_precision(machine_code):
    for row in machine_code:
        if row["kernel"] == "masked_sgd_kernel":
            assert {row["signature"][n] for n in ("lr", "momentum", "one_minus_dampening", "weight_decay")} == {"fp64"}
