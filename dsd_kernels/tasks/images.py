"""Images of the user's own: a folder with a folder of images for each class, read with Pillow."""

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dsd_kernels.tasks.networks import NETWORKS
from dsd_kernels.tasks.task import SPLIT_SEED, TEST_FRACTION, DataError, Task

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("val", "test")
MARGIN = 8 / 7  # images are kept this much larger than the network's, as 256 is to 224, so that they can be cropped
MOST_BYTES_IN_MEMORY = 2**30
MEAN, DEVIATION = 0.45, 0.225  # brings usual pixels to about mean 0 and deviation 1

Labelled = list[tuple[Path, int]]


@dataclass(frozen=True)
class ImageFiles:
    """Images of a folder, decoded when they are asked for, or all at once where they fit in memory.

    Training images are cropped at random and flipped half the time, from torch's random state on the CPU, so that a
    seed settles it; test images are cropped in the middle.
    """

    files: tuple[tuple[Path, int], ...]
    size: int
    augment: bool
    device: str = "cpu"

    def __len__(self) -> int:
        return len(self.files)

    @property
    def n_targets(self) -> int:
        return len(self.files)

    @property
    def stored_size(self) -> int:
        return round(self.size * MARGIN)

    def to(self, device: str) -> "ImageFiles":
        return self if device == self.device else replace(self, device=device)

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        wanted = rows.tolist()
        images = self._held[wanted] if self._held is not None else self._decode(wanted)
        pixels = self._cropped(images).to(self.device).float().div_(255).sub_(MEAN).div_(DEVIATION)
        return pixels, torch.tensor([self.files[row][1] for row in wanted], device=self.device)

    def _cropped(self, images: Tensor) -> Tensor:
        room = self.stored_size - self.size
        if not self.augment:
            top = room // 2
            return images[..., top : top + self.size, top : top + self.size]
        corners = torch.randint(room + 1, (len(images), 2)).tolist()
        flips = torch.rand(len(images)) < 0.5
        crops = [
            image[:, top : top + self.size, left : left + self.size]
            for image, (top, left) in zip(images, corners, strict=True)
        ]
        return torch.stack([crop.flip(-1) if flip else crop for crop, flip in zip(crops, flips, strict=True)])

    @cached_property
    def _held(self) -> Tensor | None:
        """All images, where they fit; reading them also finds a file that is no image before training begins."""
        if len(self) * 3 * self.stored_size**2 > MOST_BYTES_IN_MEMORY:
            return None
        return self._decode(range(len(self)))

    def _decode(self, rows: Sequence[int]) -> Tensor:
        return torch.stack(list(self._threads.map(lambda row: _read(self.files[row][0], self.stored_size), rows)))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # Pillow decodes without holding Python's lock


def _read(path: Path, size: int) -> Tensor:
    """A square from the middle of an image, as bytes of three channels."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected an image, Pillow cannot read it ({error})") from error
    return torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)


def image_task(model: str, folder: Path, size: int) -> Task:
    """Classification of the images in a folder of classes.

    Args:
        model: which of the image networks.
        folder: one folder per class; or `train` and `val` (or `test`), each with one folder per class. Otherwise a
            fifth of each class is held back to test, the same for every seed.
        size: side of the square that the network sees, in pixels.

    Raises:
        DataError: Pillow is missing; no folder; fewer than two classes; a class without images; an image that cannot
            be read.
    """
    if importlib.util.find_spec("PIL") is None:
        raise DataError("imagefolder: reading images needs Pillow, which is not installed: pip install pillow")
    classes, train, test = _split(folder)
    dimensions = {"size": size, "channels": 3, "n_classes": len(classes)}
    examples = [ImageFiles(tuple(files), size, augment) for files, augment in ((train, True), (test, False))]
    for part in examples:
        part[torch.tensor([0])]  # reads all, where they fit
    return Task(
        description=f"images of {len(classes)} classes in {folder}: {len(train):,} to train, {len(test):,} to test",
        sha256=_digest(folder, train + test),
        train=examples[0],
        test=examples[1],
        build=lambda: NETWORKS[model](**dimensions),
        dimensions=dimensions,
        item="image",
        metric="accuracy",
        loss_unit="nats",
        loss_per_nat=1.0,
        is_large=True,
    )


def _split(folder: Path) -> tuple[list[str], Labelled, Labelled]:
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test_folder is None or not (folder / "train").is_dir():
        classes, files = _labelled(folder)
        return classes, *_hold_back(files)
    classes, train = _labelled(folder / "train")
    test_classes, test = _labelled(test_folder)
    if test_classes != classes:
        different = sorted(set(classes) ^ set(test_classes))
        raise DataError(f"{test_folder}: expected the classes of {folder / 'train'}, different: {', '.join(different)}")
    return classes, train, test


def _labelled(folder: Path) -> tuple[list[str], Labelled]:
    """The classes of a folder, and its images with the number of their class."""
    if not folder.is_dir():
        raise DataError(f"imagefolder:{folder}: expected a folder with one folder of images per class, it is not there")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise DataError(f"imagefolder:{folder}: expected a folder for each of two classes or more, got {len(folders)}")
    files = []
    for label, path in enumerate(folders):
        images = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not images:
            raise DataError(f"imagefolder:{path}: expected images ({', '.join(SUFFIXES)}), got none")
        files += [(file, label) for file in images]
    return [path.name for path in folders], files


def _hold_back(files: Labelled) -> tuple[Labelled, Labelled]:
    """A fifth of each class to test, one image at least, chosen at random once and for all."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, test = [], []
    for label in range(files[-1][1] + 1):
        own = [file for file in files if file[1] == label]
        if len(own) < 2:
            raise DataError(f"imagefolder:{own[0][0].parent}: expected two images or more (one to test), got 1")
        n_test = max(1, round(len(own) * TEST_FRACTION))
        order = torch.randperm(len(own), generator=generator).tolist()
        test += [own[i] for i in sorted(order[:n_test])]
        train += [own[i] for i in sorted(order[n_test:])]
    return train, test


def _digest(folder: Path, files: Labelled) -> str:
    """Of the names and sizes of the files: reading the content of a large collection would take hours."""
    lines = [f"{path.relative_to(folder)} {path.stat().st_size} {label}\n" for path, label in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
