"""Tables that lose nothing: rich cuts numbers off where a table is wider than the console."""

import math

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

UNLIMITED = 100_000  # columns
MOST_DIGITS = 8


def print_table(console: Console, table: Table) -> None:
    """Print a table whole. Only the last column wraps; if its words do not fit either, the table is as wide as needed.

    Cells and headers must be plain strings.
    """
    for column in table.columns[:-1]:
        column.no_wrap = True
        column.min_width = max(len(line) for text in (column.header, *column.cells) for line in str(text).splitlines())
    needed = Measurement.get(console, console.options.update(width=UNLIMITED), table)
    table.width = max(needed.minimum, min(needed.maximum, console.width))
    console.print(table, crop=False)


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent, with more digits where fewer would make it 0 or 100 %."""
    distance = round(100 * min(fraction, 1 - fraction), 12)  # 1 - 0.9999 is a little less than 0.0001
    if distance > 0:
        digits = min(MOST_DIGITS, max(digits, math.ceil(-math.log10(distance))))
    return f"{fraction:.{digits}%}"


def short(number: float) -> str:
    """Three digits: 0.02, 0.00125, 1.25e-4, 1e30."""
    plain = f"{number:.3g}"
    if not math.isfinite(number) or (len(plain) <= 7 and "e" not in plain):
        return plain
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def loss(number: float) -> str:
    """Four decimals; the losses of a run that diverges grow beyond any column."""
    return short(number) if abs(number) >= 1000 else f"{number:.4f}"
