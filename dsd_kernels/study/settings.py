"""What a study is: its settings, and the file that keeps them in its folder."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsd_kernels.files import replace_file
from dsd_kernels.study.arms import BASELINE, METHODS
from dsd_kernels.tasks import Task
from dsd_kernels.training.config import Config
from dsd_kernels.training.machine import versions

NAME = "study.json"
FORMAT = 1
DECISIVE = ("dsd_kernels", "torch")  # packages whose versions a study may not mix
# what a study has instead of the defaults of `train`: trainings of some ten to twenty seconds on one core, at learning
# rates at which the unpruned arms do not begin to overfit early
TEXT = {"characters": 150_000, "dense": 8, "sparse": 4, "redense": 4}
INSTEAD: dict[str, dict[str, Any]] = {
    "lstm": TEXT | {"lr": 0.5},
    "rnn": TEXT,
    "transformer": TEXT | {"dense": 6, "sparse": 3, "redense": 3},
}
SEEDS = {"cnn": 20}
OTHER_SEEDS = 10


class StudyError(ValueError):
    """A study that cannot be run or gone on with; its text is one line."""


@dataclass(frozen=True)
class Settings:
    """What a study depends on.

    Attributes:
        config: of every training; its seed is not used.
        arms: names, the baseline first.
        n_seeds: the seeds are 0, 1, ..., n_seeds - 1, for every arm.
        data_sha256: the `sha256` of the task.
        versions: of the `DECISIVE` packages.
    """

    config: Config
    arms: tuple[str, ...]
    n_seeds: int
    data_sha256: str
    versions: dict[str, str | None]

    @property
    def digest(self) -> str:
        """Marks the results that belong together: all but which arms and how many seeds there are."""
        values = {"config": self.config.to_dict(), "data": self.data_sha256, "versions": self.versions}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def pairs(self) -> list[tuple[str, int]]:
        """Every training, all arms of one seed before the next seed."""
        return [(arm, seed) for seed in range(self.n_seeds) for arm in self.arms]

    def save(self, folder: Path) -> None:
        content = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "arms": list(self.arms),
            "n_seeds": self.n_seeds,
            "data_sha256": self.data_sha256,
            "versions": self.versions,
        }
        replace_file(folder / NAME, (json.dumps(content, indent=2) + "\n").encode())


def new(config: Config, arms: tuple[str, ...], n_seeds: int | None, task: Task) -> Settings:
    """The settings of a new study; the baseline is always one of its arms."""
    ordered = tuple(name for name in METHODS if name in arms or name == BASELINE)
    found = {name: versions()[name] for name in DECISIVE}
    n = n_seeds or SEEDS.get(config.model, OTHER_SEEDS)
    return Settings(replace(config, seed=0), ordered, n, task.sha256, found)


def load(folder: Path) -> Settings | None:
    """The settings in a folder; None if there are none.

    Raises:
        StudyError: they are not those of this version.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
        return Settings(
            Config.from_dict(content["config"]),
            tuple(content["arms"]),
            int(content["n_seeds"]),
            content["data_sha256"],
            content["versions"],
        )
    except (LookupError, TypeError, ValueError) as error:
        raise StudyError(f"{path}: not the settings of a study ({error})") from error


def go_on(recorded: Settings, arms: tuple[str, ...] | None, n_seeds: int | None, task: Task, folder: Path) -> Settings:
    """The recorded settings, with the arms and seeds that were added.

    Raises:
        StudyError: other data or versions, or fewer arms or seeds, whose results a report would leave out.
    """
    if task.sha256 != recorded.data_sha256:
        raise StudyError(
            f"{folder}: begun with other data (SHA-256 {recorded.data_sha256[:8]}..., here {task.sha256[:8]}...)"
        )
    here = {name: versions()[name] for name in recorded.versions}
    if other := [f"{name} {v} (here {here[name]})" for name, v in recorded.versions.items() if v != here[name]]:
        raise StudyError(f"{folder}: begun with {', '.join(other)}; go on with that, or choose another --output")
    if n_seeds is not None and n_seeds < recorded.n_seeds:
        raise StudyError(f"--seeds: expected {recorded.n_seeds} (as {folder} began with) or more, got {n_seeds}")
    if arms is not None and (left_out := [name for name in recorded.arms if name not in (*arms, BASELINE)]):
        raise StudyError(f"--arms: {folder} began with {', '.join(left_out)} too; arms can be added, not left out")
    merged = tuple(name for name in METHODS if name in (*recorded.arms, *(arms or ())))
    return replace(recorded, arms=merged, n_seeds=n_seeds or recorded.n_seeds)
