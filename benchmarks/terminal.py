"""What is seen while it measures: with rich a moving line and coloured tables, without it plain text."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from dsd_kernels.text_table import format_table

from .cells import grid, title
from .peers.contender import OURS
from .results import Result


class Plain:
    """Lines of text; nothing moves."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def warn(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def result(self, result: Result) -> None:
        self.say(f"\n{title(result)}")
        self.table(grid(result))
        for refusal in result["refusals"]:
            self.say(f"not measured: {refusal['name']}: {refusal['reason']}")

    def table(self, rows: list[list[str]], n_words: int = 1) -> None:
        """Print rows of cells, the header first; all columns but the first `n_words` are numbers."""
        self.say(format_table(rows, numbers=range(n_words, len(rows[0]))))

    @contextmanager
    def progress(self, _: int) -> Iterator["Plain"]:
        """Between cases and rounds, `begin` and `on_round` say how far it is."""
        yield self

    def begin(self, _: str) -> None:
        return None

    def on_round(self, _: int, __: int) -> None:
        return None


class Rich(Plain):
    """Tables that keep their numbers whole, and a bar over all cases where there is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console()
        self._bar: Any = None
        self._line: Any = None
        self._begun = 0

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def table(self, rows: list[list[str]], n_words: int = 1) -> None:
        from rich import box
        from rich.table import Table

        from dsd_kernels.cli.tables import print_table

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, header in enumerate(rows[0]):
            table.add_column(header, justify="left" if i < n_words else "right")
        for row in rows[1:]:
            table.add_row(*row, style="bold" if row[n_words - 1].startswith(OURS) else None)
        print_table(self.console, table)

    @contextmanager
    def progress(self, n_cases: int) -> Iterator["Rich"]:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
        with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as self._bar:
            self._line = self._bar.add_task("warming up", total=n_cases)
            yield self

    def begin(self, what: str) -> None:
        self._bar.update(self._line, description=what, completed=self._begun)
        self._begun += 1

    def on_round(self, done: int, total: int) -> None:
        self._bar.update(self._line, completed=self._begun - 1 + done / total)


def screen() -> Plain:
    return Rich() if find_spec("rich") else Plain()
