"""Results as Markdown: tables of contenders by inputs, for README.md and docs/benchmarks.md."""

from collections.abc import Callable, Iterable

from .cases import JOBS
from .cells import bytes_moved, mask_cost, number, share, times, variation
from .machine import one_line
from .results import Report, Result, Row
from .shapes import label

SUMMARY_INPUTS = ("1e6", "1e7", "1e8", "resnet50", "gpt2", "tiny", "cnn", "char-lstm")


def markdown(report: Report) -> str:
    """Every case: a table per job, one more for what was measured in other dtypes and sparsities, and the machine."""
    parts = []
    for job in job_names(report):
        results = [result for result in report["results"] if result["job"] == job]
        usual = [result for result in results if not variation(result)]
        unusual = [result for result in results if variation(result)]
        parts += [table(group) for group in (usual, unusual) if group]
    return "\n\n".join([*parts, *left_out(report), measured_on(report)])


def summary(report: Report) -> str:
    """The usual contenders of each job over a few inputs, and the machine."""
    shown = [r for r in report["results"] if not variation(r) and r["inputs"] in SUMMARY_INPUTS]
    parts = []
    for job in job_names(report):
        if results := [result for result in shown if result["job"] == job]:
            common = set.intersection(*({row["name"] for row in result["rows"]} for result in results))
            parts.append(table(results, common))
    return "\n\n".join([*parts, measured_on(report)])


def job_names(report: Report) -> list[str]:
    return list(dict.fromkeys(result["job"] for result in report["results"]))


def measured_on(report: Report) -> str:
    return f"Measured on: {one_line(report['machine'])}."


def left_out(report: Report) -> list[str]:
    """What was not measured, and why, each reason once."""
    reasons: dict[str, set[str]] = {}
    for refusal in [*report["left_out"], *(one for result in report["results"] for one in result["refusals"])]:
        reasons.setdefault(refusal["name"], set()).add(refusal["reason"])
    if not reasons:
        return []
    lines = [f"- {name}: {'; '.join(sorted(own))}" for name, own in sorted(reasons.items())]
    return ["Not measured, over some or all inputs:\n\n" + "\n".join(lines)]


def table(results: list[Result], only: set[str] | None = None) -> str:
    """One job: contenders by inputs, empty where one did not take part."""
    first = results[0]
    names = [name for name in names_of(results) if only is None or name in only]
    ours = names[0]
    shares = [*by_result(results, lambda r: share(r["floor"]["ratio"]["median"] if r["floor"] else None))]
    costs = [*by_result(results, lambda r: mask_cost(r["rows"][0]))]
    lines = [
        ["", "bytes a weight", *(heading(result) for result in results)],
        ["---", "---:", *("---:" for _ in results)],
        [f"{ours}, µs", moved(first, ours), *by_result(results, lambda r: number(r["rows"][0]["us"]["median"]))],
    ]
    if any(shares):
        lines.append(["the memory's own time / ours", floor_bytes(first), *shares])
    if any(costs):
        lines.append(["what the mask adds to our time", "", *costs])
    lines += [[name, moved(first, name), *by_result(results, ratio_of(name))] for name in names[1:]]
    if not any(line[1] for line in lines[2:]):  # no bytes are known
        lines = [[line[0], *line[2:]] for line in lines]
    return "\n".join([caption(results), "", *(f"| {' | '.join(line)} |" for line in lines)])


def caption(results: list[Result]) -> str:
    how = "" if variation(results[0]) else f", {results[0]['dtype']}, sparsity {results[0]['sparsity']:g}"
    return f"**{JOBS[results[0]['job']].title}**{how}; their time / ours:"


def heading(result: Result) -> str:
    how = variation(result)
    return f"{label(result['inputs'])}, {how}" if how else label(result["inputs"])


def names_of(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(row["name"] for result in results for row in result["rows"]))


def by_result(results: list[Result], cell: Callable[[Result], str]) -> Iterable[str]:
    return (cell(result) for result in results)


def ratio_of(name: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        row = row_of(result, name)
        return times(row["ratio"]["median"]) if row else ""

    return cell


def row_of(result: Result, name: str) -> Row | None:
    return next((row for row in result["rows"] if row["name"] == name), None)


def floor_bytes(result: Result) -> str:
    return bytes_moved(result["floor"]) if result["floor"] else ""


def moved(result: Result, name: str) -> str:
    """The bytes a weight; they are those of the dtype of the first column."""
    row = row_of(result, name)
    return bytes_moved(row) if row else ""
