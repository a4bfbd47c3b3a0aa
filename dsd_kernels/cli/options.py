"""Options of the command line: types that refuse a bad value in one line, and help in sections."""

import math
from itertools import groupby
from typing import Any

import click


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """A finite number, at least `least` (or above it, if `exclusive`) and below `below`."""

    name = "number"

    def __init__(self, least: float = 0.0, below: float = math.inf, *, exclusive: bool = False) -> None:
        self.least, self.below, self.exclusive = least, below, exclusive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        is_inside = self.least <= number < self.below and not (self.exclusive and number == self.least)
        if not is_inside:
            interval = f"{'(' if self.exclusive else '['}{self.least:g}, {self.below:g})"
            self.fail(f"expected a number in {interval}, got {value!r}", param, ctx)
        return number


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """One number or several, separated by commas."""

    name = "number,..."

    def __init__(self, number: Number) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        return tuple(self.number.convert(part, param, ctx) for part in value.split(","))


class FilledPath(click.Path):  # type: ignore[type-arg]
    """A path; the empty one, which is what an unset variable leaves, would silently mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("expected a path, got ''", param, ctx)
        return super().convert(value, param, ctx)


class SectionOption(click.Option):
    """An option that stands under a heading in the help."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help lists its options by section, in the order in which they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, options in groupby(self.get_params(ctx), lambda option: getattr(option, "section", "Help")):
            with formatter.section(section):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])
