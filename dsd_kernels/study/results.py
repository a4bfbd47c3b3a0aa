"""One file for each finished training, written whole: what is there is never trained again."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from dsd_kernels.files import replace_file
from dsd_kernels.study.settings import Settings, StudyError
from dsd_kernels.training.arm import Arm
from dsd_kernels.training.jsonable import finite
from dsd_kernels.training.machine import commit, machine_line

FOLDER = "results"
Result = dict[str, Any]


def path_of(folder: Path, arm: str, seed: int) -> Path:
    return folder / FOLDER / f"{arm}-seed{seed:03}.json"


@cache
def made_with() -> dict[str, str | None]:
    """Machine and commit of this process; asked for once, since the checkout may move on while it trains."""
    return {"machine": machine_line(), "commit": commit()}


def save(folder: Path, settings: Settings, arm: Arm) -> Result:
    """Write the result of a finished training.

    Returns:
        What `load` reads.
    """
    result: Result = {
        "study": settings.digest,
        "arm": arm.name,
        "seed": arm.seed,
        "phases": [[phase.name, phase.length, phase.sparsity] for phase in arm.flow.phases],
        "seconds": sum(record["seconds"] for record in arm.records),
        **made_with(),
        "records": arm.records,
    }
    result = finite(result)
    content = json.dumps(result, indent=1, allow_nan=False) + "\n"
    replace_file(path_of(folder, arm.name, arm.seed), content.encode())
    return result


def load(folder: Path, settings: Settings, arm: str, seed: int) -> Result | None:
    """The result of a training; None if it is not finished.

    Raises:
        StudyError: a file that is not the result of this training in this study.
    """
    path = path_of(folder, arm, seed)
    if not path.exists():
        return None
    try:
        result: Result = json.loads(path.read_text())
        found = result["study"], result["arm"], result["seed"], len(result["records"]) > 0
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path}: not a result of a training; delete it to train it again") from error
    if found != (settings.digest, arm, seed, True):
        raise StudyError(f"{path}: belongs to another study; delete it to train it again")
    return result


def load_all(folder: Path, settings: Settings) -> dict[tuple[str, int], Result]:
    """All results that are there."""
    found = {pair: load(folder, settings, *pair) for pair in settings.pairs()}
    return {pair: result for pair, result in found.items() if result is not None}
