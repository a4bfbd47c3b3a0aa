"""How time is measured: interleaved rounds after a warm-up, so that a machine that drifts drifts for everyone."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypedDict

import torch

from benchmarks.peers import Task

MAX_ROUNDS = 200


class Sample(NamedTuple):
    """Seconds until the work was done, and on a GPU until the call returned."""

    elapsed: float
    host: float | None = None


class Spread(TypedDict):
    """The median, between the quartiles."""

    median: float
    q1: float
    q3: float


Timer = Callable[[Callable[[], object]], Sample]


def time_on_cpu(run: Callable[[], object]) -> Sample:
    started = time.perf_counter_ns()
    run()
    return Sample((time.perf_counter_ns() - started) * 1e-9)


class CudaTimer:
    """Between two events on the stream, with a cold L2 cache; a host that is slower than the device shows in it too."""

    def __init__(self) -> None:
        n_bytes = 4 * torch.cuda.get_device_properties().L2_cache_size
        self._flushing = torch.empty(n_bytes, dtype=torch.uint8, device="cuda")

    def __call__(self, run: Callable[[], object]) -> Sample:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushing.zero_()
        start.record()
        called = time.perf_counter_ns()
        run()
        host = (time.perf_counter_ns() - called) * 1e-9
        end.record()
        end.synchronize()
        return Sample(start.elapsed_time(end) * 1e-3, host)


def timer_for(device: str) -> Timer:
    return CudaTimer() if device == "cuda" else time_on_cpu


def measure(tasks: Sequence[Task], timer: Timer, seconds: float, min_rounds: int) -> list[list[Sample]]:
    """Time the tasks in rounds, A B C A B C, for about so many seconds.

    Args:
        tasks: in the order of a round.
        timer: times one call.
        seconds: how long all rounds may take together; it is exceeded where `min_rounds` take longer.
        min_rounds: at least so many; at most MAX_ROUNDS.

    Returns:
        For every task its samples, one per round.
    """
    with no_garbage_collection():
        time_round(tasks, timer)  # compiles, allocates workspaces, faults pages in
        started = time.perf_counter()
        time_round(tasks, timer)
        n_rounds = int(seconds / (time.perf_counter() - started))
        rounds = [time_round(tasks, timer) for _ in range(min(max(n_rounds, min_rounds), MAX_ROUNDS))]
    return [list(samples) for samples in zip(*rounds, strict=True)]


def time_round(tasks: Sequence[Task], timer: Timer) -> list[Sample]:
    samples = []
    for task in tasks:
        task.prepare()
        samples.append(timer(task.run))
    return samples


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A collection would fall on whoever happens to run."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def spread(values: Sequence[float]) -> Spread:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}
