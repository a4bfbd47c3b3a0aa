"""How results are shown: ratios first, times beside them; plain text for a terminal, Markdown for the README."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import OPS
from benchmarks.machine import one_line
from benchmarks.results import Report, Result, Row, load, op_shapes
from benchmarks.timing import Spread
from dsd_kernels.text_table import format_table

RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- benchmark:(?P<name>[\w.-]+) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
LABELS = {"resnet50": "ResNet-50", "tiny": "161 tiny"}


def title(op: str, inputs: str) -> str:
    shapes = op_shapes(op, inputs)
    return f"{OPS[op].title}, {label(inputs)} ({plural(len(shapes), 'tensor')})"


def label(inputs: str) -> str:
    return LABELS.get(inputs, inputs)


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def text_table(result: Result) -> str:
    """One case: how many times this library's time each contender takes, and the times; no column without a value."""
    rows = [*result["rows"], result["floor"]]
    columns = [[header, *map(cell, rows)] for header, cell in COLUMNS]
    filled = [column for column in columns if any(column[1:])]
    table = format_table(list(zip(*filled, strict=True)), numbers=range(1, len(filled)))
    return f"{table}\n{plural(result['rounds'], 'round')}; {floor_share(result)} of the memory floor"


def times(ratio: float) -> str:
    """At least two significant digits, none of them beyond what a timing can say."""
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def number(us: float) -> str:
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def quartiles(spread: Spread, form: str) -> str:
    return f"{spread['q1']:{form}} to {spread['q3']:{form}}"


def bytes_moved(row: Row) -> str:
    return "" if row["bytes_per_weight"] is None else f"{row['bytes_per_weight']:g}"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("", lambda row: row["name"]),
    ("time / ours", lambda row: times(row["ratio"]["median"])),
    ("quartiles", lambda row: quartiles(row["ratio"], ".2f")),
    ("us", lambda row: number(row["us"]["median"])),
    ("quartiles", lambda row: quartiles(row["us"], ",.0f")),
    ("host us", lambda row: "" if row["host_us"] is None else number(row["host_us"]["median"])),
    ("bytes/weight", bytes_moved),
    ("GB/s", lambda row: "" if row["gb_per_s"] is None else f"{row['gb_per_s']:.1f}"),
)


def floor_share(result: Result) -> str:
    """How much of its time the op would need if memory were all that took time."""
    share = result["floor"]["ratio"]["median"]
    return f"{share:.0%}" if share >= 0.01 else "< 1%"


def markdown(report: Report) -> str:
    """A table per op, contenders by inputs, and the line of the machine."""
    ops = dict.fromkeys(result["op"] for result in report["results"])
    tables = [markdown_table([result for result in report["results"] if result["op"] == op]) for op in ops]
    return "\n\n".join([*tables, f"Measured on: {one_line(report['machine'])}."])


def markdown_table(results: list[Result]) -> str:
    """All inputs of one op."""
    first = results[0]
    caption = f"**{OPS[first['op']].title}**, {first['dtype']}, sparsity {first['sparsity']:g}; their time / ours:"
    lines = [
        markdown_row("", "bytes a weight", *(label(result["inputs"]) for result in results)),
        markdown_row("---", "---:", *["---:" for _ in results]),
        markdown_row(f"{first['rows'][0]['name']}, µs", bytes_moved(first["rows"][0]), *(our_us(r) for r in results)),
        markdown_row("share of the memory floor", bytes_moved(first["floor"]), *map(floor_share, results)),
    ]
    for i, row in enumerate(first["rows"][1:], start=1):
        lines.append(
            markdown_row(row["name"], bytes_moved(row), *(times(r["rows"][i]["ratio"]["median"]) for r in results))
        )
    return "\n".join([caption, "", *lines])


def markdown_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def our_us(result: Result) -> str:
    return number(result["rows"][0]["us"]["median"])


def with_tables(text: str, results: Path = RESULTS) -> str:
    """The text with what stands between its markers `benchmark:NAME` made from NAME.json; empty without that file."""

    def table(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        content = f"\n{markdown(load(path))}\n\n" if path.exists() else ""
        return f"{match[1]}{content}{match[3]}"

    return MARKED.sub(table, text)
