"""What a user did wrong, in words, and which rank says it."""

import click

from dsd_kernels.tasks import DataError
from dsd_kernels.training.checkpoint import CheckpointError

USER_ERRORS = (click.ClickException, CheckpointError, DataError, OSError)


class RankError(click.ClickException):
    """An error of a run over several ranks.

    Args:
        message: in one line.
        speaks: whether this rank is the one to say it.
        exit_code: Default 2, as for every error of the user.
    """

    def __init__(self, message: str, *, speaks: bool, exit_code: int = 2) -> None:
        super().__init__(message)
        self.speaks = speaks
        self.code = exit_code


def say_error(message: str) -> None:
    """The one line on stderr that every error of the user is."""
    click.echo(f"error: {' '.join(message.split())}", err=True)


def message_of(error: BaseException) -> str:
    """One of `USER_ERRORS` in one line."""
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    return " ".join(text.split())
