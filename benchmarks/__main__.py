"""`python -m benchmarks`: the gate, then every case, then the JSON."""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks import gate, machine, report, results
from benchmarks.cases import INPUTS, OPS, QUICK_INPUTS, fits
from benchmarks.timing import timer_for

README = Path(__file__).parents[1] / "README.md"
FULL = (10.0, 11)  # seconds and at least so many rounds for each case
QUICK = (2.0, 5)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        if options.update_readme:
            README.write_text(report.with_tables(README.read_text()))
            return 0
        if options.table:
            print(report.markdown(results.load(options.table)))
            return 0
        check(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return benchmark(options)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the masked step, selection and pruning against the ways people do without this library. "
        "All are first checked; nothing is timed if they are wrong. Ratios are over this library's time.",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--cases", type=one_of(OPS), default=list(OPS), help=f"default: {','.join(OPS)}")
    parser.add_argument("--inputs", type=one_of(INPUTS), help=f"default: {','.join(INPUTS)}, as far as memory allows")
    parser.add_argument("--quick", action="store_true", help="shorter, and without the largest inputs")
    parser.add_argument("--seconds", type=float, help="for each case, roughly; default: 10, with --quick 2")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write all results there too")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="only print results as Markdown tables")
    parser.add_argument(
        "--update-readme", action="store_true", help="only bring the README's tables in line with benchmarks/results"
    )
    return parser


def benchmark(options: argparse.Namespace) -> int:
    problems = gate.problems(options.device)
    if problems:
        print("the gate is red, so no speed is measured:", *problems, sep="\n  ", file=sys.stderr)
        return 1
    described = machine.describe(options.device)
    print(machine.one_line(described))
    if machine.is_busy(described):
        print(f"this machine is busy (load {described['load']}): do not trust these ratios", file=sys.stderr)
    measured = measure_all(options)
    if options.output:
        results.save(options.output, described, measured)
    return 0


def check(options: argparse.Namespace) -> None:
    """Refuse what would fail, before minutes of measuring are lost to it."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: torch.cuda is not available here")
    if options.seconds is not None and not 0 <= options.seconds < math.inf:
        raise ValueError(f"--seconds: expected a number of seconds, 0 or more, got {options.seconds}")
    if options.output:
        if options.output.is_dir():
            raise ValueError(f"--output: expected a file, {options.output} is a folder")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.output.parent).close()


def measure_all(options: argparse.Namespace) -> list[results.Result]:
    """Every case, shown as soon as it is measured."""
    timer = timer_for(options.device)
    default_seconds, min_rounds = QUICK if options.quick else FULL
    seconds = default_seconds if options.seconds is None else options.seconds
    names = options.inputs or (QUICK_INPUTS if options.quick else tuple(INPUTS))
    measured = []
    for op, inputs in product(options.cases, names):
        print(f"\n{report.title(op, inputs)}", flush=True)
        if not fits(INPUTS[inputs], options.device):
            print("left out: it does not fit into this machine's memory")
            continue
        measured.append(results.run_case(op, inputs, options.device, timer, seconds, min_rounds))
        print(report.text_table(measured[-1]), flush=True)
    return measured


def one_of(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an option that takes some of the choices, by commas; they are taken in their own order."""
    offered = list(choices)

    def parse(text: str) -> list[str]:
        asked = text.split(",")
        if wrong := [name for name in asked if name not in offered]:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(offered)}, got {','.join(wrong)!r}")
        return [name for name in offered if name in asked]

    return parse


if __name__ == "__main__":
    sys.exit(main())
