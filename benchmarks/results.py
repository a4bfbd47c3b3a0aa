"""One case measured, and the JSON that all cases end in."""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TypedDict, cast

from benchmarks.cases import DTYPE, INPUTS, OPS, SPARSITY, Inputs, Shape, make_inputs
from benchmarks.machine import Machine
from benchmarks.peers import Task, contenders, memory_floor
from benchmarks.timing import Sample, Spread, Timer, measure, spread

SCHEMA = 1
FLOORS = {"cpu": "in-place scale of as many bytes", "cuda": "copy of as many bytes"}


class Row(TypedDict):
    """A contender's times; `ratio` is its time over this library's, round by round."""

    name: str
    ratio: Spread
    us: Spread
    host_us: Spread | None
    bytes_per_weight: float | None
    gb_per_s: float | None


class Result(TypedDict):
    """A case: the first row is this library's; `floor` is the memory's own time for the bytes that the op must move."""

    op: str
    inputs: str
    n_tensors: int
    n_weights: int
    dtype: str
    sparsity: float
    rounds: int
    floor: Row
    rows: list[Row]


class Report(TypedDict):
    """What `--output` writes."""

    schema: int
    machine: Machine
    results: list[Result]


def op_shapes(op: str, inputs: str) -> list[Shape]:
    """The tensors that an op works on: a step updates all, only those of two or more dimensions are pruned."""
    return [shape for shape in INPUTS[inputs] if op == "step" or len(shape) >= 2]


def run_case(op: str, inputs: str, device: str, timer: Timer, seconds: float, min_rounds: int) -> Result:
    shapes = op_shapes(op, inputs)
    n_weights = sum(map(prod, shapes))
    floor_bytes = OPS[op].floor_bytes_per_weight
    entrants = contenders(op, device)
    tensors = make_inputs(INPUTS[inputs], device)
    tasks = [
        *(settled(entrant.bind(tensors), tensors) for entrant in entrants),
        memory_floor(n_weights * floor_bytes, device),
    ]
    samples = measure(tasks, timer, seconds, min_rounds)
    named = [*((entrant.name, entrant.bytes_per_weight) for entrant in entrants), (FLOORS[device], floor_bytes)]
    rows = [
        make_row(name, n_bytes, own, samples[0], n_weights) for (name, n_bytes), own in zip(named, samples, strict=True)
    ]
    return {
        "op": op,
        "inputs": inputs,
        "n_tensors": len(shapes),
        "n_weights": n_weights,
        "dtype": str(DTYPE).removeprefix("torch."),
        "sparsity": SPARSITY,
        "rounds": len(samples[0]),
        "floor": rows[-1],
        "rows": rows[:-1],
    }


def settled(task: Task, inputs: Inputs) -> Task:
    """The task after a pass over its inputs: each finds them in the caches as the others do, whoever ran before."""

    def prepare() -> None:
        task.prepare()
        inputs.read()

    return Task(task.run, prepare)


def make_row(
    name: str, bytes_per_weight: float | None, samples: Sequence[Sample], ours: Sequence[Sample], n_weights: int
) -> Row:
    us = spread([sample.elapsed * 1e6 for sample in samples])
    host_us = [sample.host * 1e6 for sample in samples if sample.host is not None]
    return {
        "name": name,
        "ratio": spread([sample.elapsed / our.elapsed for sample, our in zip(samples, ours, strict=True)]),
        "us": us,
        "host_us": spread(host_us) if host_us else None,
        "bytes_per_weight": bytes_per_weight,
        "gb_per_s": None if bytes_per_weight is None else bytes_per_weight * n_weights / us["median"] * 1e-3,
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


def save(path: Path, machine: Machine, results: list[Result]) -> None:
    report: Report = {"schema": SCHEMA, "machine": machine, "results": results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
