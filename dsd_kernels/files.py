"""Files that are written whole or not at all."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Replace a file as a whole: the content is on the disk before the name points to it.

    Args:
        path: the file; its folder must exist.
        content: all of it.
        keep: the name that the file which stood there before gets. A kill between the two renamings leaves that name
            alone. Default None, it is gone.

    Raises:
        OSError: with the path as its file name; the old file stands then, under its own name or that of `keep`.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep:
            path.replace(keep)
        temporary.replace(path)
    except OSError as error:  # that of a failed write names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where a folder can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
