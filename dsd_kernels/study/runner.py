"""Runs what is not finished yet, in this process or in several.

Checkpoints are written at the ends of epochs, so a kill loses an epoch of each training under way, or a minute where
epochs are shorter than that.
"""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path

from dsd_kernels.study import results
from dsd_kernels.study.arms import make_arm
from dsd_kernels.study.results import Result
from dsd_kernels.study.settings import Settings, StudyError
from dsd_kernels.tasks import Task, load
from dsd_kernels.training import checkpoint
from dsd_kernels.training.arm import Arm, Unwatched
from dsd_kernels.training.config import Config
from dsd_kernels.training.execution import execution

SECONDS_BETWEEN_CHECKPOINTS = 60.0
UNFINISHED = "unfinished"


def train_all(folder: Path, settings: Settings, missing: list[tuple[str, int]], jobs: int) -> Iterator[Result]:
    """Train what is missing, and give each result once its file is written.

    Args:
        folder: of the study.
        settings: of the study.
        missing: arms and seeds.
        jobs: how many processes; 1 is this one. The results do not depend on it.

    Raises:
        StudyError: a process was killed, or a checkpoint cannot be used.
    """
    for name in (results.FOLDER, UNFINISHED):
        (folder / name).mkdir(exist_ok=True)
    if jobs == 1:
        for arm, seed in missing:
            yield train_one(folder, settings, arm, seed)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(missing)), context, initializer=_live_and_die_with_the_parent)
    try:
        waiting: list[Future[Result]] = [pool.submit(train_one, folder, settings, arm, seed) for arm, seed in missing]
        for done in as_completed(waiting):
            yield done.result()
    except BrokenProcessPool as error:
        raise StudyError(
            "a training process was killed, perhaps for lack of memory (fewer --jobs need less); finished trainings "
            "are kept, and the same command goes on"
        ) from error
    except BaseException:
        for process in list(pool._processes.values()):  # the public way waits for trainings to end
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _live_and_die_with_the_parent() -> None:
    """Leave Ctrl-C to the parent, and stop when it is gone, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_one(folder: Path, settings: Settings, name: str, seed: int) -> Result:
    """Train one arm with one seed to the end, from where an earlier attempt left a checkpoint."""
    config = settings.config
    results.made_with()
    with execution(config):
        arm = make_arm(name, config, task_of(config), seed)
        path = folder / UNFINISHED / f"{name}-seed{seed:03}.pt"
        if any(file.exists() for file in checkpoint.files(path)):
            resume(arm, settings, path)
        saved = time.monotonic()
        while not arm.finished:
            arm.train_epoch(Unwatched(), stop=lambda: False)
            if not arm.finished and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                checkpoint.save(path, {"study": settings.digest, "arm": arm.state_dict()})
                saved = time.monotonic()
    result = results.save(folder, settings, arm)
    checkpoint.remove(path)
    return result


def resume(arm: Arm, settings: Settings, path: Path) -> None:
    """Go to the end of the epoch that a checkpoint was written after; the next one draws its randomness anew.

    Raises:
        StudyError: it cannot be used.
    """
    try:
        state = checkpoint.load_newest(path, warnings.warn)
        with checkpoint.fitting(path):
            if state["study"] != settings.digest:
                raise ValueError("belongs to another study")
            arm.load_state_dict(state["arm"])
    except checkpoint.CheckpointError as error:
        raise StudyError(f"{error}; delete it to begin this training again") from error


@cache
def task_of(config: Config) -> Task:
    """The task of a config, its data on the config's device; read once in each process."""
    task = load(config.model, config.dataset, characters=config.characters, image_size=config.image_size)
    return task.to(config.device)
