"""How numbers look, in every table: no more digits than a timing can say."""

from collections.abc import Callable

from .cases import JOBS, SPARSITY
from .results import Result, Row
from .shapes import label
from .timing import Spread
from .values import held

Column = tuple[str, Callable[[Row], str]]


def title(result: Result) -> str:
    tensors = plural(result["n_tensors"], "tensor")
    how = f"{result['dtype']}, sparsity {result['sparsity']:g}{held(result['values'])}"
    return f"{JOBS[result['job']].title}, {label(result['inputs'])} ({tensors}, {result['n_weights']:,} weights), {how}"


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def times(ratio: float) -> str:
    """At least two significant digits, none of them beyond what a timing can say."""
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def number(us: float) -> str:
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def quartiles(spread: Spread, form: str) -> str:
    return f"{spread['q1']:{form}} to {spread['q3']:{form}}"


def bytes_moved(row: Row) -> str:
    return "" if row["bytes_per_weight"] is None else f"{row['bytes_per_weight']:g}"


def share(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}" if fraction >= 0.01 else "< 1%"


def signed(fraction: float) -> str:
    """Percent; a decimal where it is small."""
    return f"{fraction:+.0%}" if abs(fraction) >= 0.0995 else f"{fraction:+.1%}"


def mask_cost(row: Row) -> str:
    """The time that the mask adds, as a share of the same implementation's time without one."""
    return "" if row["mask_cost"] is None else signed(row["mask_cost"]["median"])


COLUMNS: tuple[Column, ...] = (
    ("", lambda row: row["name"]),
    ("time / ours", lambda row: times(row["ratio"]["median"])),
    ("quartiles", lambda row: quartiles(row["ratio"], ".2f")),
    ("mask costs", mask_cost),
    ("us", lambda row: number(row["us"]["median"])),
    ("quartiles", lambda row: quartiles(row["us"], ",.0f")),
    ("host us", lambda row: "" if row["host_us"] is None else number(row["host_us"]["median"])),
    ("B/weight", bytes_moved),
    ("GB/s", lambda row: "" if row["gb_per_s"] is None else f"{row['gb_per_s']:.1f}"),
    ("of memory's", lambda row: share(row["memory_share"])),
    ("rounds", lambda row: str(row["rounds"])),
)


def grid(result: Result) -> list[list[str]]:
    """One case as rows of cells, the header first: how many times this library's time each contender takes, and more.

    A column without a value is left out.
    """
    rows = [*result["rows"], *([result["floor"]] if result["floor"] else [])]
    columns = [[header, *map(cell, rows)] for header, cell in COLUMNS]
    return [list(cells) for cells in zip(*(column for column in columns if any(column[1:])), strict=True)]


def variation(result: Result) -> str:
    """What is unusual about a case; empty if nothing is."""
    dtype = "" if result["dtype"] == "float32" else f", {result['dtype']}"
    sparsity = "" if result["sparsity"] == SPARSITY else f", sparsity {result['sparsity']:g}"
    return f"{dtype}{sparsity}{held(result['values'])}".removeprefix(", ")
