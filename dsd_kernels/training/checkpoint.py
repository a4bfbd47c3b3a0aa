"""Checkpoints of a run: never torn by a kill, never read when damaged, and the one before is kept.

A checkpoint is what `torch.save` writes, a zip archive, whose comment is the SHA-256 of all the bytes before it. So a
file answers for itself under any name, and what reads zip archives and `torch.load` reads it.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dsd_kernels.files import replace_file

NAME = "checkpoint.pt"
FORMAT = "dsd_kernels.run"
VERSION = 4
READABLE = (3, VERSION)  # 3 had its SHA-256 in a file beside it
MARK = b"sha256:"
SEAL_BYTES = len(MARK) + 64


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; its text is one line that names the file and what is wrong."""


class DamagedError(CheckpointError):
    """A file that is missing, torn or changed, so that the checkpoint before it is the one to use."""


def save(path: Path | str, state: dict[str, Any], *, begins: bool = False) -> None:
    """Write a checkpoint so that a kill at any instant leaves the one before or this one, whole.

    Args:
        path: the file; its folder must exist.
        state: what `torch.load(weights_only=True)` reads back: tensors and plain types.
        begins: whether it is the first one of a run, so that what stands there is of another and is not kept.
            Default False: it is kept as `previous(path)`, unless it is damaged.

    Raises:
        CheckpointError: a state that `load` could not read; what stands there stays as it is.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "state": state}, buffer)
    _check_readable(path, buffer)
    if begins:
        previous(path).unlink(missing_ok=True)
    keep = previous(path) if not begins and path.is_file() and _is_sealed(path.read_bytes()) else None
    replace_file(path, _sealed(buffer.getvalue()), keep)
    _digest_beside(path).unlink(missing_ok=True)


def load(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint of `save`, on the CPU.

    Args:
        path: the file, or the folder of a run.

    Raises:
        DamagedError: missing, damaged or no checkpoint at all.
        CheckpointError: a folder, foreign, or of another version.
    """
    path = file_of(Path(path))
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror or error}") from error
    if not _is_sealed(content) and _digest(content) not in _digests_beside(path):
        raise DamagedError(
            f"{path}: damaged, or not a checkpoint of dsd-kernels: "
            f"its {len(content):,} bytes do not end with the SHA-256 of those before"
        )
    return _unpickle(path, content)


def load_newest(path: Path | str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Read a checkpoint, or the one before it where it is damaged.

    Args:
        path: as in `load`.
        tell: is given one line, which names the file that is passed over and the one that is used.

    Raises:
        CheckpointError: as `load`; where both are damaged it names both.
    """
    path = file_of(Path(path))
    try:
        return load(path)
    except DamagedError as error:
        damaged = error
    if not previous(path).exists():
        raise damaged
    try:
        state = load(previous(path))
    except DamagedError as error:
        raise DamagedError(f"{damaged}; {error}") from error
    tell(f"{damaged}; going on from the one before, {previous(path)}")
    return state


def remove(path: Path) -> None:
    """Delete a checkpoint and what is kept with it."""
    for file in files(path):
        file.unlink(missing_ok=True)


def files(path: Path) -> tuple[Path, ...]:
    """All names that `save` may leave behind for a path, and those of earlier versions."""
    return path, previous(path), _digest_beside(path)


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at a path is kept."""
    return path.with_stem(f"{path.stem}.previous")


def file_of(path: Path) -> Path:
    """The checkpoint that a path means: the file itself, or the one in the folder of a run."""
    return path / NAME if path.is_dir() and path.name != NAME else path


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Say that a checkpoint is of another structure, whatever its content happens to provoke where it is used.

    Raises:
        CheckpointError: it is.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: does not fit this version of dsd-kernels ({type(error).__name__}: {what})"
        ) from error


def _check_readable(path: Path, archive: io.BytesIO) -> None:
    """Raise unless `torch.load(weights_only=True)` takes what is to be written; on meta no tensor is copied."""
    archive.seek(0)
    try:
        torch.load(archive, map_location="meta", weights_only=True)
    except Exception as error:  # as in `_unpickle`
        raise CheckpointError(f"{path}: not written, since torch.load(weights_only=True) could not read it") from error


def _sealed(archive: bytes) -> bytes:
    """The archive with its comment; the length of a comment is the last field of an archive that has none."""
    body = archive[:-2] + SEAL_BYTES.to_bytes(2, "little")
    return body + MARK + _digest(body).encode()


def _is_sealed(content: bytes) -> bool:
    body, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    return seal == MARK + _digest(body).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digests_beside(path: Path) -> list[str]:
    """The digests that version 3 recorded: that of the file, and in a comment that of the one before."""
    try:
        lines = _digest_beside(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
    fields = [line.removeprefix("# ").split() for line in lines]
    return [digest for digest, name in (f for f in fields if len(f) == 2) if name == path.name]


def _unpickle(path: Path, content: bytes) -> dict[str, Any]:
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes happen to provoke
        raise CheckpointError(f"{path}: not a checkpoint of dsd-kernels (torch.load cannot read it)") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of dsd-kernels (it lacks the format mark {FORMAT!r})")
    if saved.get("version") not in READABLE:
        raise CheckpointError(f"{path}: written in version {saved.get('version')!r}, expected version {VERSION}")
    with fitting(path):
        state: dict[str, Any] = saved["state"]
    return state
