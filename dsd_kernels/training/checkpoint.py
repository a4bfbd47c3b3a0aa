"""Checkpoints of a run: never torn by a kill, never read when damaged.

Beside `checkpoint.pt` stands `checkpoint.pt.sha256`, in the format of sha256sum. It is replaced first and keeps, as
a comment, the digest of the file that is about to be replaced, so a kill between the two leaves a valid pair.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dsd_kernels.files import replace_file

NAME = "checkpoint.pt"
FORMAT = "dsd_kernels.run"
VERSION = 3


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; its text is one line that names the file and what is wrong."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any instant leaves either the one before or this one, whole.

    Args:
        path: the file; its folder must exist.
        state: what `torch.load(weights_only=True)` reads back: tensors and plain types.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "state": state}, buffer)
    content = buffer.getvalue()
    lines = [f"{_digest(content)}  {path.name}\n"]
    if path.exists() and (previous := _digest(path.read_bytes())) in _recorded_digests(path):
        lines.append(f"# {previous}  {path.name}\n")
    replace_file(sidecar(path), "".join(lines).encode())
    replace_file(path, content)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `save`, on the CPU.

    Args:
        path: the file, or the folder of a run.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another version.
    """
    path = file_of(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    recorded = _recorded_digests(path)
    if not recorded:
        raise CheckpointError(f"{path}: not a checkpoint of dsd-kernels (no SHA-256 in {sidecar(path).name} beside it)")
    if _digest(content) not in recorded:
        raise CheckpointError(
            f"{path}: damaged: its {len(content):,} bytes do not have the SHA-256 recorded in {sidecar(path).name}"
        )
    return _unpickle(path, content)


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


def sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _recorded_digests(path: Path) -> list[str]:
    try:
        lines = sidecar(path).read_text(errors="replace").splitlines()
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
    if saved.get("version") != VERSION:
        raise CheckpointError(f"{path}: written in version {saved.get('version')!r}, expected version {VERSION}")
    with fitting(path):
        state: dict[str, Any] = saved["state"]
    return state
