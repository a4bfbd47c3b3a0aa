"""The group of commands, and how it ends: every error of the user is one line and exit code 2."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import click

import dsd_kernels
from dsd_kernels.cli.bench import bench
from dsd_kernels.cli.doctor import doctor
from dsd_kernels.cli.errors import USER_ERRORS, RankError, message_of, say_error
from dsd_kernels.cli.inspect import inspect
from dsd_kernels.cli.launch import is_first
from dsd_kernels.cli.study import study
from dsd_kernels.cli.train import train


class OneLineErrors(click.Group):
    """A group that answers bad input in one line on stderr, without usage text or traceback.

    Of several ranks only the first one prints.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            with _printing_once():
                code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except RankError as error:
            _fail(message_of(error), speaks=error.speaks, exit_code=error.code)
        except USER_ERRORS as error:
            _fail(message_of(error), speaks=is_first())
        except click.Abort:
            if is_first():
                click.echo("interrupted; nothing was written", err=True)  # train answers for what it wrote itself
            sys.exit(130)
        sys.exit(code)


@contextmanager
def _printing_once() -> Iterator[None]:
    """Let only the first of several ranks print."""
    if is_first():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def _fail(message: str, *, speaks: bool, exit_code: int = 2) -> NoReturn:
    if speaks:
        say_error(message)
    sys.exit(exit_code)


@click.group(cls=OneLineErrors, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dsd_kernels.__version__, prog_name="dsd-kernels")
@click.pass_context
def app(context: click.Context) -> None:
    """Masked (sparse) training for PyTorch: train, compare methods, measure speed, look into runs and machines."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (train, study, bench, inspect, doctor):
    app.add_command(_command)
