"""What a kernel may cost on a GPU, from its machine code and the bytes that its work must move. Nothing is measured."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from .cubins import Compiled
from .machine_code import hot_loop, widest_access

COPY_BYTES_PER_S = 4.3e12  # of an H200, read and written
ISSUES_PER_S = 132 * 4 * 32 * 1.98e9  # SMs, warp instructions a clock, lanes, clock
NOT_MEASURED = "expected, not measured; not yet run on a GPU"
FORMULA = (
    f"Shares are {NOT_MEASURED}. Instructions a weight: of one thread's way through the hot loop that moves most bytes "
    "by its widest loads and stores, with a histogram's atomics and otherwise the fewest instructions (no options, "
    "ends, ordered ties, nor the few weights that a bracket collects), so a warp issues at least as many. Weights: the "
    "bytes of these loads and stores over the bytes of values that the kernel reads and writes a weight. Memory time = "
    f"bytes a weight / {COPY_BYTES_PER_S / 1e12:g} TB/s, the copy rate of an H200; issue time = instructions a weight "
    "/ (132 SMs x 4 warp instructions a clock x 32 lanes x 1.98 GHz), whatever the architecture compiled for. Expected "
    "share of the memory limit = memory time / the larger of the two; latency, occupancy and atomics can only lower it."
)
HEADER = (
    "kernel",
    "dtype",
    "registers",
    "stack bytes",
    "widest access (bytes)",
    "instructions a weight",
    "bytes a weight",
    "issue time / memory time",
    "expected share",
)
N_WORDS = 2  # columns that are not numbers


@dataclass(frozen=True)
class Traffic:
    """What a kernel must move of a weight: values read and written, and mask bits."""

    reads: int = 1
    writes: int = 0
    mask_bits: int = 0


# kernels that go through all weights, of Triton and CUDA; others see a sample, or what stands in for a tensor
TRAFFIC = {
    "masked_sgd_kernel": Traffic(3, 2, 1),
    "split_kernel": Traffic(),  # and writes the 3 % that it collects
    "bracket_kernel": Traffic(),  # and writes what it stages
    "digit_kernel": Traffic(),
    "count_missed_kernel": Traffic(),
    "count_digits_kernel": Traffic(),
    "count_ties_kernel": Traffic(),
    "ties_kernel": Traffic(),
    "count_kernel": Traffic(),
    "count_below_kernel": Traffic(),
    "magnitude_histogram_kernel": Traffic(),
    "apply_kernel": Traffic(2, 2, 1),
    "prune_kernel": Traffic(2, 2, 1),
    "pack_kernel": Traffic(1, 0, 1),
    "pack_mask_kernel": Traffic(1, 0, 1),
    "unpack_kernel": Traffic(0, 1, 1),
    "unpack_mask_kernel": Traffic(0, 1, 1),
}


class PerWeight(TypedDict):
    """Of a kernel that goes through all weights."""

    instructions: float
    bytes: float
    issue_over_memory: float
    expected_share: float


class Row(TypedDict):
    """One compiled kernel."""

    kernel: str
    dtype: str
    registers: int
    stack_bytes: int
    widest_bytes: int
    per_weight: PerWeight | None


def make_row(language: str, name: str, dtype: str | None, compiled: Compiled) -> Row:
    stored = "bool" if re.match(r"(un)?pack_", name) else dtype
    return {
        "kernel": f"{language} {name}",
        "dtype": stored or "any",
        "registers": compiled.registers,
        "stack_bytes": compiled.stack_bytes,
        "widest_bytes": widest_access(compiled.code),
        "per_weight": per_weight(TRAFFIC[name], stored, compiled) if stored and name in TRAFFIC else None,
    }


def per_weight(traffic: Traffic, dtype: str, compiled: Compiled) -> PerWeight:
    bits = re.search(r"\d+", dtype)
    value_bytes = (traffic.reads + traffic.writes) * (int(bits[0]) // 8 if bits else 1)
    loop = hot_loop(compiled.code)
    instructions = loop.n_instructions / (loop.widest_bytes / value_bytes)
    n_bytes = value_bytes + traffic.mask_bits / 8
    ratio = (instructions / ISSUES_PER_S) / (n_bytes / COPY_BYTES_PER_S)
    return {
        "instructions": instructions,
        "bytes": n_bytes,
        "issue_over_memory": ratio,
        "expected_share": 1 / max(1.0, ratio),
    }


def grid(rows: Sequence[Row]) -> list[list[str]]:
    return [list(HEADER), *map(_cells, rows)]


def _cells(row: Row) -> list[str]:
    cells = [row["kernel"], row["dtype"], *(str(row[key]) for key in ("registers", "stack_bytes", "widest_bytes"))]
    found = row["per_weight"]
    if found is None:
        return [*cells, "", "", "", ""]
    shares = (f"{found[key]:.0%}" for key in ("issue_over_memory", "expected_share"))
    return [*cells, f"{found['instructions']:.1f}", f"{found['bytes']:g}", *shares]
