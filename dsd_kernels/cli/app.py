"""The group of commands, and how it ends: every error of the user is one line and exit code 2."""

import sys
from typing import Any, NoReturn

import click

import dsd_kernels
from dsd_kernels.cli.bench import bench
from dsd_kernels.cli.doctor import doctor
from dsd_kernels.cli.inspect import inspect
from dsd_kernels.cli.study import study
from dsd_kernels.cli.train import train
from dsd_kernels.tasks import DataError
from dsd_kernels.training.checkpoint import CheckpointError


class OneLineErrors(click.Group):
    """A group that answers bad input in one line on stderr, without usage text or traceback."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            _fail(error.format_message())
        except (CheckpointError, DataError) as error:
            _fail(str(error))
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except click.Abort:
            click.echo("interrupted; nothing was written", err=True)  # train answers for what it wrote itself
            sys.exit(130)
        sys.exit(code)


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


@click.group(cls=OneLineErrors, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dsd_kernels.__version__, prog_name="dsd-kernels")
@click.pass_context
def app(context: click.Context) -> None:
    """Masked (sparse) training for PyTorch: train, compare methods, measure speed, look into runs and machines."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (train, study, bench, inspect, doctor):
    app.add_command(_command)
