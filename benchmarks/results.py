"""One case measured, and the JSON that all cases end in."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from dsd_kernels.files import replace_file

from .cases import JOBS, OVER_NETWORKS, Case
from .machine import Machine
from .peers import contenders
from .peers.contender import Contender, Task
from .peers.floors import NAMES, floor_kind, memory_floor
from .shapes import n_weights
from .timing import Samples, Spread, Timer, measure, spread
from .workloads import Inputs, Training, make_inputs, make_training

SCHEMA = 3
CACHES = 1e9  # bytes; no cache holds as many
FLOOR = "floor"


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
    values: str
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
    workload = make_workload(case, device)
    entrants, tasks, refusals = admit(contenders(case, device, full=full, compiled=compiled), workload)
    n = sum(entrant.is_ours for entrant in entrants)
    floor = floor_task(case, device)
    ordered = [*tasks[:n], *floor, *tasks[n:]]  # ours and the floor take part in every round, whatever they cost
    names = [entrant.name for entrant in entrants]
    names[n:n] = [FLOOR] * len(floor)
    measured = measure(ordered, timer, seconds, min_rounds, n + len(floor), on_round)
    samples = dict(zip(names, measured, strict=True))
    own_floor = floor_row(case, device, samples, names[0])
    return {
        "job": case.job,
        "inputs": case.inputs,
        "n_tensors": len(workload.params),
        "n_weights": sum(p.numel() for p in workload.params),
        "dtype": case.dtype_name,
        "sparsity": case.sparsity,
        "values": case.values,
        "floor": own_floor,
        "rows": rows_of(case, entrants, samples, own_floor),
        "refusals": refusals,
    }


def make_workload(case: Case, device: str) -> Inputs | Training:
    if case.job in OVER_NETWORKS:
        return make_training(case.inputs, device, case.dtype, case.sparsity)
    return make_inputs(case.shapes, device, case.dtype, case.sparsity, case.values)


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
            refusals.append({"name": entrant.name, "reason": first_line(error)})
        else:
            admitted.append(entrant)
            tasks.append(task)
    return admitted, tasks, refusals


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


def rows_of(case: Case, entrants: Sequence[Contender], samples: Mapping[str, Samples], floor: Row | None) -> list[Row]:
    ours = samples[entrants[0].name]
    rows = []
    for entrant in entrants:
        moved = None if entrant.moves is None else entrant.moves.bytes(case.dtype)
        row = make_row(entrant.name, moved, samples[entrant.name], ours, n_weights(case.shapes))
        if entrant.unmasked and entrant.unmasked in samples:
            costs = ratios(samples[entrant.name], samples[entrant.unmasked])
            row["mask_cost"] = spread([ratio - 1 for ratio in costs])
        if floor and floor["gb_per_s"] and row["gb_per_s"]:
            row["memory_share"] = row["gb_per_s"] / floor["gb_per_s"]
        rows.append(row)
    return rows


def floor_row(case: Case, device: str, samples: Mapping[str, Samples], ours: str) -> Row | None:
    job = JOBS[case.job]
    if job.floor is None:
        return None
    name = NAMES[floor_kind(device, reads_only=job.reads_only)]
    row = make_row(name, job.floor.bytes(case.dtype), samples[FLOOR], samples[ours], n_weights(case.shapes))
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
    replace_file(path, (json.dumps(report, indent=1) + "\n").encode())
