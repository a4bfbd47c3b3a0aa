"""The options of `python -m benchmarks` and `dsd-kernels bench`; a bad one is one line, before anything is measured."""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch

from dsd_kernels.sparsity import check_sparsity

from .cases import DTYPES, JOBS, NETWORKS, SPARSITY, Case, grid, usual_cases
from .shapes import INPUTS, model_shapes
from .values import USUAL, VALUES

FULL = (5.0, 11)  # seconds for each case, and rounds for each contender, roughly
QUICK = (2.0, 7)


class OneLineParser(argparse.ArgumentParser):
    """Answers bad input in one line, without usage text."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def make_parser(program: str) -> OneLineParser:
    parser = OneLineParser(
        prog=program,
        allow_abbrev=False,
        description="What a mask costs, on this machine, against the ways people do without this library. All of ours "
        "is checked first; nothing is timed if it is wrong. Ratios are times over this library's, within one run. "
        "Without --full it takes a minute or two, with it about ten. "
        "Another command: sass --help, what the machine code of the GPU kernels promises.",
    )
    add_what(parser)
    add_how(parser)
    add_instead(parser)
    return parser


def add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    names = ",".join([*INPUTS, *NETWORKS])
    dtypes = one_of(DTYPES)
    group.add_argument("--full", action="store_true", help="all inputs, sparsities, dtypes and contenders")
    group.add_argument("--cases", type=one_of(JOBS), default=list(JOBS), help=f"default: {','.join(JOBS)}")
    group.add_argument("--inputs", type=one_of([*INPUTS, *NETWORKS]), help=f"some of {names}")
    group.add_argument("--model", metavar="MODULE:CALLABLE", help="the shapes of your own model, which this returns")
    group.add_argument("--sparsity", type=sparsities, metavar="S,...", help=f"default: {SPARSITY:g}")
    group.add_argument("--dtype", type=dtypes, metavar="DTYPE,...", help=f"some of {','.join(DTYPES)}")
    group.add_argument("--values", type=one_of(VALUES), metavar="VALUES,...", help=f"some of {','.join(VALUES)}")
    group.add_argument("--compile", action="store_true", help="torch.compile too, which takes up to 20 s a case")


def add_how(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    group.add_argument("--seconds", type=float, help=f"for each case, roughly; default: {QUICK[0]:g}, full {FULL[0]:g}")
    group.add_argument("--output", type=Path, metavar="FILE.json", help="write all results there too")
    group.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the results there; needs matplotlib")


def add_instead(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("instead of measuring").add_mutually_exclusive_group()
    group.add_argument("--table", type=Path, metavar="FILE.json", help="print (or --plots) results written earlier")
    group.add_argument("--compare", type=Path, nargs=2, metavar=("A.json", "B.json"), help="what changed from A to B")
    group.add_argument("--update-docs", action="store_true", help="make the documents' tables from benchmarks/results")


def one_of(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an option that takes some of the choices, by commas; they are taken in their own order."""
    offered = list(choices)

    def parse(text: str) -> list[str]:
        asked = text.split(",")
        if wrong := [name for name in asked if name not in offered]:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(offered)}, got {','.join(wrong)!r}")
        return [name for name in offered if name in asked]

    return parse


def sparsities(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
        for value in values:
            check_sparsity("sparsity", value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers in [0, 1), got {text!r}") from error
    return sorted(set(values))


def check(options: argparse.Namespace) -> None:
    """Refuse what would fail, before minutes of measuring are lost to it."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: torch.cuda is not available here")
    if options.seconds is not None and not 0 <= options.seconds < math.inf:
        raise ValueError(f"--seconds: expected a number of seconds, 0 or more, got {options.seconds}")
    if options.output:
        check_file(options.output)
    if options.plots:
        check_plots(options.plots)


def check_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"--output: expected a file, {path} is a folder")
    check_writable(path.parent)


def check_plots(folder: Path) -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError("--plots: needs matplotlib, which is not installed: pip install matplotlib") from error
    check_writable(folder)


def check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The cases that are asked for.

    Raises:
        ValueError: the model cannot be had, or nothing is left to measure.
    """
    if not (options.model or options.inputs or options.sparsity or options.dtype or options.values):
        return usual_cases(full=options.full, jobs=options.cases)
    usual_inputs = list(dict.fromkeys(case.inputs for case in usual_cases(full=options.full, jobs=options.cases)))
    dtypes = [DTYPES[name] for name in options.dtype or ["float32"]]
    asked: dict[str, Any] = {
        "dtypes": dtypes,
        "sparsities": options.sparsity or [SPARSITY],
        "values": options.values or [USUAL],
    }
    cases = grid(options.cases, options.inputs or ([] if options.model else usual_inputs), **asked)
    if options.model:
        cases += grid(options.cases, [options.model], **asked, model=model_shapes(options.model))
    if not cases:
        raise ValueError(
            "nothing to measure: networks are for --cases train and flow, all else for the other cases, and where "
            "the sparsity prunes no weight there is nothing to select"
        )
    return cases
