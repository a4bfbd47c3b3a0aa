"""One case measured, and the JSON that all cases end in."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from .cases import JOBS, Case
from .machine import Machine
from .peers import contenders
from .peers.contender import Contender, Task
from .peers.floors import NAMES, floor_kind, memory_floor
from .shapes import n_weights
from .timing import Samples, Spread, Timer, measure, spread
from .workloads import Inputs, make_inputs, make_training

SCHEMA = 2
CACHES = 1e9  # bytes; no cache holds as many


class Row(TypedDict):
    """A contender's times.

    Attributes:
        ratio: its time over this library's, round by round.
        rounds: in how many it took part.
        mask_cost: its time over that of the same implementation without a mask, round by round, less 1.
        memory_share: of the memory's own speed, how much it reaches with the bytes that it moves.
    """

    name: str
    ratio: Spread
    us: Spread
    host_us: Spread | None
    rounds: int
    mask_cost: Spread | None
    bytes_per_weight: float | None
    gb_per_s: float | None
    memory_share: float | None


class Refusal(TypedDict):
    """What was not measured, and why."""

    name: str
    reason: str


class Result(TypedDict):
    """A case: the first row is this library's; `floor` is the memory's own time for the bytes that must move."""

    job: str
    inputs: str
    n_tensors: int
    n_weights: int
    dtype: str
    sparsity: float
    floor: Row | None
    rows: list[Row]
    refusals: list[Refusal]


class Report(TypedDict):
    """What `--output` writes."""

    schema: int
    machine: Machine
    results: list[Result]
    left_out: list[Refusal]


def run_case(
    case: Case,
    device: str,
    timer: Timer,
    seconds: float,
    min_rounds: int,
    *,
    full: bool = False,
    compiled: bool = False,
    on_round: Callable[[int, int], object] = lambda _, __: None,
) -> Result:
    workload: Any = (
        make_training(case.inputs, device, case.dtype, case.sparsity)
        if case.job == "train"
        else make_inputs(case.shapes, device, case.dtype, case.sparsity)
    )
    entrants, tasks, refusals = admit(contenders(case, device, full=full, compiled=compiled), workload)
    floor = floor_task(case, device)
    n = sum(entrant.is_ours for entrant in entrants)
    ordered = [*tasks[:n], *floor, *tasks[n:]]  # ours and the floor take part in every round, whatever they cost
    samples = measure(ordered, timer, seconds, min_rounds, n + len(floor), on_round)
    samples = [*samples[:n], *samples[n + len(floor) :], *samples[n : n + len(floor)]]
    shapes = [tuple(p.shape) for p in workload.model.parameters()] if case.job == "train" else case.shapes
    floor_row, rows = rows_of(case, entrants, samples, device)
    return {
        "job": case.job,
        "inputs": case.inputs,
        "n_tensors": len(shapes),
        "n_weights": n_weights(shapes),
        "dtype": case.dtype_name,
        "sparsity": case.sparsity,
        "floor": floor_row,
        "rows": rows,
        "refusals": refusals,
    }


def admit(entrants: Sequence[Contender], workload: Any) -> tuple[list[Contender], list[Task], list[Refusal]]:
    """Bind every contender and let it run once; this library may not refuse, others say why."""
    admitted: list[Contender] = []
    tasks: list[Task] = []
    refusals: list[Refusal] = []
    for entrant in entrants:
        try:
            task = entrant.bind(workload)
            task = settled(task, workload) if isinstance(workload, Inputs) else task
            task.prepare()
            task.run()
        except (RuntimeError, TypeError, ValueError) as error:
            if not admitted:
                raise
            refusals.append({"name": entrant.name, "reason": str(error).strip().splitlines()[0]})
        else:
            admitted.append(entrant)
            tasks.append(task)
    return admitted, tasks, refusals


def settled(task: Task, inputs: Inputs) -> Task:
    """The task after a pass over its inputs: each finds them in the caches as the others do, whoever ran before."""
    if inputs.n_bytes > CACHES:
        return task

    def prepare() -> None:
        task.prepare()
        inputs.read()

    return Task(task.run, prepare)


def floor_task(case: Case, device: str) -> list[Task]:
    job = JOBS[case.job]
    if job.floor is None:
        return []
    n_bytes = n_weights(case.shapes) * job.floor.bytes(case.dtype)
    return [memory_floor(n_bytes, device, floor_kind(device, reads_only=job.reads_only))]


def rows_of(
    case: Case, entrants: Sequence[Contender], samples: Sequence[Samples], device: str
) -> tuple[Row | None, list[Row]]:
    """The row of the floor, whose samples come last if the job has one, and those of the contenders."""
    n, ours = n_weights(case.shapes), samples[0]
    floor = floor_row(case, device, samples[-1], ours)
    by_name = {entrant.name: own for entrant, own in zip(entrants, samples, strict=False)}
    rows = []
    for entrant in entrants:
        own = by_name[entrant.name]
        moved = None if entrant.moves is None else entrant.moves.bytes(case.dtype)
        row = make_row(entrant.name, moved, own, ours, n)
        if entrant.unmasked in by_name:
            row["mask_cost"] = spread([ratio - 1 for ratio in ratios(own, by_name[entrant.unmasked])])
        if row["gb_per_s"] is not None and floor is not None and floor["gb_per_s"] is not None:
            row["memory_share"] = row["gb_per_s"] / floor["gb_per_s"]
        rows.append(row)
    return floor, rows


def floor_row(case: Case, device: str, samples: Samples, ours: Samples) -> Row | None:
    job = JOBS[case.job]
    if job.floor is None:
        return None
    name = NAMES[floor_kind(device, reads_only=job.reads_only)]
    row = make_row(name, job.floor.bytes(case.dtype), samples, ours, n_weights(case.shapes))
    row["memory_share"] = 1.0
    return row


def ratios(samples: Samples, others: Samples) -> list[float]:
    """Of the rounds in which both took part: a machine that slows down for everyone changes none."""
    pairs = zip(samples, others, strict=True)
    return [sample.elapsed / other.elapsed for sample, other in pairs if sample and other]


def make_row(name: str, bytes_per_weight: float | None, samples: Samples, ours: Samples, n_weights: int) -> Row:
    own = [sample for sample in samples if sample]
    us = spread([sample.elapsed * 1e6 for sample in own])
    host_us = [sample.host * 1e6 for sample in own if sample.host is not None]
    return {
        "name": name,
        "ratio": spread(ratios(samples, ours)),
        "us": us,
        "host_us": spread(host_us) if host_us else None,
        "rounds": len(own),
        "mask_cost": None,
        "bytes_per_weight": bytes_per_weight,
        "gb_per_s": None if bytes_per_weight is None else bytes_per_weight * n_weights / us["median"] * 1e-3,
        "memory_share": None,
    }


def load(path: Path) -> Report:
    """Read what `save` wrote.

    Raises:
        OSError, ValueError: no such file; no report of this schema; each names the file.
    """
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON written by --output ({error})") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a report of schema {SCHEMA}, written by --output")
    return cast("Report", report)


def save(path: Path, report: Report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
