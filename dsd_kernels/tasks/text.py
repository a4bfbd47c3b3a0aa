"""Text, character by character: Python's own documentation, which needs no network, or a file of the user's."""

import hashlib
import math
from pathlib import Path

import torch

from dsd_kernels.tasks.networks import NETWORKS, WINDOW
from dsd_kernels.tasks.task import DataError, Task, TensorExamples

TEST_FRACTION = 0.1
LEAST_CHARACTERS = 10 * WINDOW + 10  # so that a tenth of it holds one window and the character that follows


def documentation() -> str:
    """Python's own documentation text."""
    from pydoc_data.topics import topics

    return "\n\n".join(f"{name}\n\n{topics[name]}" for name in sorted(topics))


def read_text(path: Path) -> str:
    """A file of text.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"text:{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"text:{path}: expected UTF-8, got byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from error


def text_task(model: str, text: str, name: str, characters: int) -> Task:
    """Prediction of the next character: the first 90 % to train, the rest to test.

    Args:
        model: which of the text networks.
        text: at least `LEAST_CHARACTERS`.
        name: what to call it.
        characters: how many of the first characters to use; 0 uses all.

    Raises:
        DataError: the text is too short.
    """
    text = text[: characters or None]
    if len(text) < LEAST_CHARACTERS:
        raise DataError(f"{name}: expected a text of {LEAST_CHARACTERS} characters or more, got {len(text)}")
    alphabet = sorted(set(text))
    index = {character: i for i, character in enumerate(alphabet)}
    codes = torch.tensor([index[character] for character in text])
    cut = len(codes) - int(len(codes) * TEST_FRACTION)
    dimensions = {"n_characters": len(alphabet)}
    first = "the first " if characters else ""
    return Task(
        description=f"{name}: {first}{len(text):,} characters, the last 10 % to test",
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        train=_windows(codes[:cut]),
        test=_windows(codes[cut:]),
        build=lambda: NETWORKS[model](**dimensions),
        dimensions=dimensions,
        item="character",
        metric="loss",
        loss_unit="bits/char",
        loss_per_nat=1 / math.log(2),
    )


def _windows(codes: torch.Tensor) -> TensorExamples:
    """Inputs and next characters, in windows that follow one another; what does not fill a window is left out."""
    n = (len(codes) - 1) // WINDOW * WINDOW
    return TensorExamples(codes[:n].view(-1, WINDOW), codes[1 : n + 1].view(-1, WINDOW))
