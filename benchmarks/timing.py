"""How time is measured: interleaved rounds after a warm-up, so that a machine that drifts drifts for everyone."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypedDict

import torch

from .peers.contender import Task

MAX_ROUNDS = 200
FEWEST = 3
PATIENCE = 1.5  # seconds for the rounds of one task, where they are more than its share
SHORT = 1e-3  # seconds; shorter tasks would be timed by how much of the caches their predecessor has taken


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
        self._flushing.sum()  # read, or the zeros would be written back to memory while the call is timed
        start.record()
        called = time.perf_counter_ns()
        run()
        host = (time.perf_counter_ns() - called) * 1e-9
        end.record()
        end.synchronize()
        return Sample(start.elapsed_time(end) * 1e-3, host)


def timer_for(device: str) -> Timer:
    return CudaTimer() if device == "cuda" else time_on_cpu


Samples = Sequence[Sample | None]


def warm_up(task: Task, timer: Timer) -> float:
    """Run a task: the first time compiles, allocates workspaces and faults pages in, so it is run again if it is fast.

    Returns:
        The seconds that it takes, with what it prepares.
    """
    for _ in range(2):
        started = time.perf_counter()
        time_once(task, timer)
        if (cost := time.perf_counter() - started) > PATIENCE:
            break
    return cost


def measure(
    tasks: Sequence[Task],
    timer: Timer,
    seconds: float,
    min_rounds: int,
    steady: int = 1,
    on_round: Callable[[int, int], object] = lambda _, __: None,
) -> list[Samples]:
    """Time the tasks in rounds, A B C B A C, for about so many seconds.

    Every round has an order of its own, the same in every run, so that nobody always follows the same one.

    Args:
        tasks: what is timed; one that is short is run once more, untimed, just before.
        timer: times one call.
        seconds: how long all rounds may take together; it is exceeded where the fewest rounds take longer.
        min_rounds: at least so many, as far as PATIENCE goes, and at least FEWEST of them; at most MAX_ROUNDS.
        steady: how many of the first tasks take part in every round.
        on_round: called after every round with how many are done and how many there are.

    Returns:
        For every task one sample per round, None where a slow one sat out: it does so evenly.
    """
    with no_garbage_collection():
        costs = [warm_up(task, timer) for task in tasks]
        counts = [n_rounds(cost, seconds / len(tasks), min_rounds) for cost in costs]
        total = max(counts[0], min_rounds)
        strides = [1 if i < steady else stride(count, total) for i, count in enumerate(counts)]
        samples: list[list[Sample | None]] = [[None] * total for _ in tasks]
        for i, order in enumerate(orders(len(tasks), total)):
            for j in order:
                if i % strides[j] == 0:
                    samples[j][i] = take_turn(tasks[j], timer, is_short=costs[j] < SHORT)
            on_round(i + 1, total)
    return list(samples)


def orders(n_tasks: int, n_rounds: int) -> Iterator[list[int]]:
    generator = random.Random(0)
    for _ in range(n_rounds):
        yield generator.sample(range(n_tasks), n_tasks)


def n_rounds(cost: float, seconds: float, min_rounds: int) -> int:
    affordable = max(FEWEST, int(PATIENCE / cost))
    return min(MAX_ROUNDS, max(min(min_rounds, affordable), int(seconds / cost)))


def stride(count: int, total: int) -> int:
    """How many rounds apart to take part at least `count` times; a power of two, so any two tasks meet in rounds."""
    every = 1
    while -(-total // (2 * every)) >= count:
        every *= 2
    return every


def take_turn(task: Task, timer: Timer, *, is_short: bool) -> Sample:
    if is_short:
        time_once(task, timer)
    return time_once(task, timer)


def time_once(task: Task, timer: Timer) -> Sample:
    task.prepare()
    return timer(task.run)


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
