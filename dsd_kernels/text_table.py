"""Plain aligned tables, for people and for logs."""

from collections.abc import Collection, Sequence


def format_table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Rows of cells, the header first, as lines of aligned columns: words to the left, numbers to the right.

    Args:
        rows: cells of text, as many in each row.
        numbers: indices of the columns to align to the right. Default ().
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_align(row, widths, numbers) for row in rows)


def _align(row: Sequence[str], widths: Sequence[int], numbers: Collection[int]) -> str:
    cells = enumerate(zip(row, widths, strict=True))
    return "  ".join(cell.rjust(w) if i in numbers else cell.ljust(w) for i, (cell, w) in cells).rstrip()
