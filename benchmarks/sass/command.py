"""The command: compile, count, print."""

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict, cast

from dsd_kernels.text_table import format_table
from dsd_kernels.training.machine import commit, versions

from ..cases import DTYPES
from ..options import OneLineParser, check_file, one_of
from . import cuda_kernels
from .table import FORMULA, N_WORDS, Row, grid, make_row

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# by op: what it is called in Triton's launchers, and its CUDA sources
OPS = {
    "masked_sgd": ("masked_sgd", "mixed_sgd"),
    "kth_magnitude": ("select", "kth_magnitude"),
    "global_counts": ("global_counts",),
    "magnitude_histogram": ("magnitude_histogram",),
    "prune": ("prune",),
    "pack_mask": ("pack_mask",),
    "unpack_mask": ("unpack_mask",),
}
SCHEMA = 1


class Report(TypedDict):
    """As it stands in the JSON."""

    schema: int
    architecture: str
    versions: dict[str, str]
    commit: str | None
    left_out: list[str]
    rows: list[Row]


def main(arguments: Sequence[str], program: str) -> int:
    parser = make_parser(program)
    options = parser.parse_args(arguments)
    try:
        check()
        if options.output:
            check_file(options.output)
        report = compile_all(options.arch, options.ops, options.dtype)
        if options.output:
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    rows = grid(report["rows"])
    print("\n".join([format_table(rows, range(N_WORDS, len(rows[0]))), "", FORMULA, made_by(report)]))
    return 0


def make_parser(program: str) -> OneLineParser:
    parser = OneLineParser(
        prog=f"{program} sass",
        allow_abbrev=False,
        description="Compile every Triton kernel, and with nvcc every CUDA kernel, and count in the machine code what "
        "a weight costs. Needs triton and no GPU; takes half a minute.",
    )
    parser.add_argument("--arch", choices=ARCHITECTURES, default="sm_90", help="default: sm_90")
    parser.add_argument("--ops", type=one_of(OPS), default=list(OPS), help=f"default: {','.join(OPS)}")
    dtypes = one_of(DTYPES)
    parser.add_argument("--dtype", type=dtypes, default=["float32", "bfloat16"], help="default: float32,bfloat16")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write what was found there too")
    return parser


def check() -> None:
    """Refuse what would fail half-way."""
    if find_spec("triton") is None:
        raise ValueError("sass: needs triton, which is not installed: pip install 'triton>=3.6'")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise ValueError("TRITON_INTERPRET: expected to be unset, an interpreted kernel has no machine code")


def compile_all(arch: str, names: Sequence[str], dtypes: Sequence[str]) -> Report:
    from .triton_kernels import compile_ops  # Triton is not everywhere

    architecture = int(arch.removeprefix("sm_"))
    rows = []
    for dtype in dtypes:
        rows += [make_row("Triton", k.name, dtype, k) for k in compile_ops(architecture, DTYPES[dtype], names)]
    if not (reason := cuda_kernels.why_not()):
        for kernel in cuda_kernels.compile_sources(architecture, [stem for name in names for stem in OPS[name]]):
            name, of = cuda_kernels.readable(kernel.name)
            if of is None or of in dtypes:
                rows.append(make_row("CUDA", name, of, kernel))
    return {
        "schema": SCHEMA,
        "architecture": arch,
        "versions": compilers(),
        "commit": commit(),
        "left_out": [f"CUDA kernels: {reason}"] if reason else [],
        "rows": rows,
    }


def compilers() -> dict[str, str]:
    found = {"triton": versions()["triton"], "nvcc": cuda_kernels.version()}
    return {name: version for name, version in found.items() if version}


def load(path: Path) -> Report:
    """Read what --output wrote."""
    return cast("Report", json.loads(path.read_text()))


def markdown(report: Report) -> str:
    """The table, how it was counted, and by which compilers."""
    header, *rows = grid(report["rows"])
    rule = ["---" if i < N_WORDS else "---:" for i in range(len(header))]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
    return "\n\n".join(["\n".join(lines), FORMULA, made_by(report)])


def made_by(report: Report) -> str:
    used = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    left_out = "".join(f" Left out: {reason}." for reason in report["left_out"])
    return f"Compiled for {report['architecture']}: {used}; commit {report['commit']}.{left_out}"
