"""Two runs side by side: what became faster or slower by more than the timings scatter."""

from typing import NamedTuple

from .cells import number, times
from .machine import one_line
from .peers.contender import OURS
from .results import Report, Result, Row
from .shapes import label
from .timing import Spread
from .values import held


class Change(NamedTuple):
    """One contender in one case; `ratio` is the second time over the first, between its extremes by the quartiles."""

    case: str
    name: str
    before: Spread
    after: Spread

    @property
    def ratio(self) -> Spread:
        return {
            "median": self.after["median"] / self.before["median"],
            "q1": self.after["q1"] / self.before["q3"],
            "q3": self.after["q3"] / self.before["q1"],
        }

    @property
    def verdict(self) -> str:
        """Empty where the quartiles of the two overlap."""
        ratio = self.ratio
        return "slower" if ratio["q1"] > 1 else "faster" if ratio["q3"] < 1 else ""


def changes(before: Report, after: Report) -> list[Change]:
    """Every contender of every case that both runs measured."""
    earlier = {(key(result), row["name"]): row for result in before["results"] for row in rows(result)}
    return [
        Change(key(result), row["name"], earlier[key(result), row["name"]]["us"], row["us"])
        for result in after["results"]
        for row in rows(result)
        if (key(result), row["name"]) in earlier
    ]


def key(result: Result) -> str:
    how = f"{result['dtype']}, sparsity {result['sparsity']:g}{held(result['values'])}"
    return f"{result['job']} {label(result['inputs'])}, {how}"


def rows(result: Result) -> list[Row]:
    return [*result["rows"], *([result["floor"]] if result["floor"] else [])]


def heading(before: Report, after: Report) -> str:
    lines = [f"A: {one_line(before['machine'])}", f"B: {one_line(after['machine'])}"]
    if before["machine"]["line"] != after["machine"]["line"]:
        lines.append("These are different machines: compare the ratios within each run, not the times.")
    return "\n".join(lines)


def grid(found: list[Change]) -> list[list[str]]:
    """All rows of this library and all that changed, the header first."""
    header = ["case", "contender", "A, us", "B, us", "B / A", "within", ""]
    shown = [change for change in found if change.verdict or is_ours(change)]
    return [header, *(cells(change) for change in shown)]


def is_ours(change: Change) -> bool:
    return change.name.startswith(OURS)


def cells(change: Change) -> list[str]:
    ratio = change.ratio
    times_us = number(change.before["median"]), number(change.after["median"])
    return [
        change.case,
        change.name,
        *times_us,
        times(ratio["median"]),
        f"{ratio['q1']:.2f} to {ratio['q3']:.2f}",
        change.verdict,
    ]


def closing(found: list[Change]) -> str:
    slower, faster = (sum(change.verdict == word for change in found) for word in ("slower", "faster"))
    return (
        f"{len(found)} timings compared: {slower} slower, {faster} faster beyond the quartiles of both runs\n"
        "where torch's own moved too, it was the machine"
    )
