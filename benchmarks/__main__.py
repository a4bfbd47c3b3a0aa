"""`python -m benchmarks`: the gate, then every case, then the JSON."""

import argparse
import sys
from collections.abc import Sequence

from . import compare, docs, gate, machine, report, results
from .cases import Case, fits
from .options import FULL, QUICK, cases_of, check, make_parser
from .results import Report
from .sass import command
from .terminal import Plain, screen
from .timing import timer_for


def main(arguments: Sequence[str] | None = None, program: str = "python -m benchmarks") -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments[:1]) == ["sass"]:
        return command.main(arguments[1:], program)
    parser = make_parser(program)
    options = parser.parse_args(arguments)
    try:
        check(options)
        if is_shown_only(options):
            return 0
        cases = cases_of(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        return benchmark(options, cases)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def is_shown_only(options: argparse.Namespace) -> bool:
    """Do what is asked for instead of measuring, if anything is."""
    if options.update_docs:
        docs.update()
    elif options.compare:
        compare_files(options)
    elif options.table:
        show_file(options)
    else:
        return False
    return True


def compare_files(options: argparse.Namespace) -> None:
    before, after = map(results.load, options.compare)
    found = compare.changes(before, after)
    if not found:
        raise ValueError("--compare: the two have no case in common")
    shown = screen()
    shown.say(compare.heading(before, after))
    shown.table(compare.grid(found), n_words=2)
    shown.say(compare.closing(found))


def show_file(options: argparse.Namespace) -> None:
    loaded = results.load(options.table)
    if options.plots:
        draw(options, loaded, screen())
    else:
        print(report.markdown(loaded))


def benchmark(options: argparse.Namespace, cases: Sequence[Case]) -> int:
    shown = screen()
    if problems := gate.problems_of(cases, options.device):
        shown.warn("\n  ".join(["the gate is red, so no speed is measured:", *problems]))
        return 1
    described = machine.describe(options.device)
    shown.say(machine.one_line(described))
    if machine.is_busy(described):
        shown.warn(f"this machine is busy (load {described['load']}): do not trust these ratios")
    made: Report = {"schema": results.SCHEMA, "machine": described, "results": [], "left_out": []}
    try:
        measure_all(options, cases, shown, made)
        if options.plots:
            draw(options, made, shown)
    except KeyboardInterrupt:
        if not options.output or not (made["results"] or made["left_out"]):
            raise
        print(f"interrupted; {options.output} has the cases before", file=sys.stderr)
        return 130
    return 0


def draw(options: argparse.Namespace, made: Report, shown: Plain) -> None:
    from .plots import draw  # matplotlib is not everywhere

    for path in draw(made, options.plots):
        shown.say(f"drawn: {path}")


def measure_all(options: argparse.Namespace, cases: Sequence[Case], shown: Plain, made: Report) -> None:
    """Every case, shown and written as soon as it is measured, so that a run that is cut leaves what it has."""
    timer = timer_for(options.device)
    default_seconds, min_rounds = FULL if options.full else QUICK
    seconds = default_seconds if options.seconds is None else options.seconds
    with shown.progress(len(cases)) as progress:
        for case in cases:
            progress.begin(str(case))
            if not fits(case, options.device):
                made["left_out"].append({"name": str(case), "reason": "it does not fit into this machine's memory"})
                shown.say(f"\n{case}\nleft out: {made['left_out'][-1]['reason']}")
            else:
                compiled = options.compile or (options.full and case.is_usual)
                settings = {"full": options.full, "compiled": compiled, "on_round": progress.on_round}
                result = results.run_case(case, options.device, timer, seconds, min_rounds, **settings)
                made["results"].append(result)
                shown.result(result)
            if options.output:
                results.save(options.output, made)


if __name__ == "__main__":
    sys.exit(main())
