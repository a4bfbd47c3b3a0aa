"""`python -m benchmarks.ranks`: selection over shards against gathering the weights, in time and bytes.

Every contender prunes the same shards exactly, so all end with the same weights on every rank, or no speed is printed.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import start_processes

from dsd_kernels import prune_, unpack_mask
from dsd_kernels.distributed import count_traffic
from dsd_kernels.shards import shares
from dsd_kernels.sparsity import n_pruned

from . import machine
from .cells import number, times
from .machine import Machine
from .shapes import INPUTS, label
from .timing import Spread, no_garbage_collection

SCHEMA = 1
SPARSITY = 0.5
PROCESSES = (2, 4)
CASES = (
    ("1e5", "float32"),
    ("1e6", "float32"),
    ("1e7", "float32"),
    ("resnet50", "float32"),
    ("1e7", "bfloat16"),
    ("resnet50", "bfloat16"),
)
ROUNDS = 9


class Row(TypedDict):
    """A contender: its time, that over ours in the same round, and what one rank sends or receives at most."""

    name: str
    us: Spread
    ratio: Spread
    n_bytes: float
    n_messages: int


class Result(TypedDict):
    """One case."""

    inputs: str
    dtype: str
    n_tensors: int
    n_weights: int
    processes: int
    rows: list[Row]


class Report(TypedDict):
    """What `--output` writes."""

    schema: int
    machine: Machine
    results: list[Result]


@dataclass
class Shards:
    """Tensors cut by rows over all ranks: on each rank its own part, and how many weights each rank has of each."""

    tensors: list[Tensor]  # DTensors
    originals: list[Tensor]
    k: list[int]
    sizes: list[list[int]]

    @property
    def own(self) -> list[Tensor]:
        return [tensor.to_local() for tensor in self.tensors]  # type: ignore[attr-defined]

    @property
    def whole_bytes(self) -> int:
        return sum(tensor.numel() * tensor.itemsize for tensor in self.tensors)

    def restore(self) -> None:
        for own, original in zip(self.own, self.originals, strict=True):
            own.copy_(original)


def make_shards(inputs: str, dtype: torch.dtype) -> Shards:
    from torch.distributed.tensor import Shard, distribute_tensor

    n_ranks = dist.get_world_size()
    mesh = init_device_mesh("cpu", (n_ranks,))
    tensors, k, sizes = [], [], []
    for i, shape in enumerate(shape for shape in INPUTS[inputs] if len(shape) >= 2):
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype)
        tensors.append(distribute_tensor(whole, mesh, [Shard(0)]))
        k.append(n_pruned(SPARSITY, whole.numel()))
        rows = [len(part) for part in torch.arange(shape[0]).chunk(n_ranks)]
        sizes.append([n * whole[0].numel() for n in [*rows, *[0] * (n_ranks - len(rows))]])
    return Shards(cast("list[Tensor]", tensors), [t.to_local().clone() for t in tensors], k, sizes)


def by_histograms(shards: Shards) -> None:
    """What this library does: counts are sent."""
    counts = shares(shards.tensors, shards.own, shards.k)
    prune_(shards.own, k=torch.stack(cast("list[Tensor]", counts)))


def by_all_gather(shards: Shards) -> None:
    """Every rank gets all weights, in one collective, selects, and keeps its part of the masks."""
    flat = flatten(shards)
    gathered = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, flat)
    masks = masks_of_wholes(shards, gathered)
    for own, parts in zip(shards.own, masks, strict=True):
        own.view(-1).masked_fill_(~parts[dist.get_rank()], 0.0)


def by_gather(shards: Shards) -> None:
    """One rank gets all weights, selects, and tells each rank how many of its own go."""
    flat, n_ranks = flatten(shards), dist.get_world_size()
    counts = torch.empty(n_ranks, len(shards.k), dtype=torch.int64)
    if dist.get_rank() == 0:
        gathered = [torch.empty_like(flat) for _ in range(n_ranks)]
        dist.gather(flat, gathered)
        for i, parts in enumerate(masks_of_wholes(shards, gathered)):
            counts[:, i] = torch.stack([part.numel() - part.sum() for part in parts])
    else:
        dist.gather(flat)
    dist.broadcast(counts, 0)
    prune_(shards.own, k=counts[dist.get_rank()].contiguous())


def flatten(shards: Shards) -> Tensor:
    """The weights of one rank, padded to those of the rank with the most."""
    most = max(map(sum, zip(*shards.sizes, strict=True)))
    flat = shards.own[0].new_zeros(most)
    torch.cat([own.flatten() for own in shards.own], out=flat[: sum(own.numel() for own in shards.own)])
    return flat


def masks_of_wholes(shards: Shards, gathered: Sequence[Tensor]) -> list[list[Tensor]]:
    """Of every tensor, the part of its mask that each rank has."""
    parts = [
        flat.split([*(own := [sizes[rank] for sizes in shards.sizes]), flat.numel() - sum(own)])
        for rank, flat in enumerate(gathered)
    ]
    wholes = [torch.cat([own[i] for own in parts]) for i in range(len(shards.sizes))]
    masks = unpack_mask(prune_(wholes, k=shards.k), wholes)
    return [list(mask.split(sizes)) for mask, sizes in zip(masks, shards.sizes, strict=True)]


CONTENDERS: dict[str, Callable[[Shards], None]] = {
    "dsd_kernels, histograms": by_histograms,
    "all-gather the weights": by_all_gather,
    "gather them to one rank": by_gather,
}


def sent(name: str, shards: Shards) -> tuple[float, int]:
    """Bytes and messages of the busiest rank, one way: rings for all-reduce and all-gather."""
    n_ranks = dist.get_world_size()
    if name != "dsd_kernels, histograms":
        return shards.whole_bytes * (n_ranks - 1) / n_ranks, 1 if "all" in name else 2
    with count_traffic() as traffic:
        by_histograms(shards)
    return 2 * traffic.n_bytes * (n_ranks - 1) / n_ranks, traffic.n_messages


def check(shards: Shards) -> None:
    """The gate: all end with the same weights."""
    found = []
    for run in CONTENDERS.values():
        shards.restore()
        run(shards)
        found.append([own.clone() for own in shards.own])
    same = all(a.equal(b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    verdict = torch.tensor(int(same))
    dist.all_reduce(verdict, dist.ReduceOp.MIN)
    if not verdict:
        raise RuntimeError("the gate is red, so no speed is measured: contenders prune different weights")


def time_rounds(shards: Shards) -> dict[str, list[float]]:
    """Microseconds until the last rank was done, of each contender in each round."""
    elapsed: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    order = random.Random(0)
    with no_garbage_collection():
        for _ in range(ROUNDS):
            for name in order.sample(list(CONTENDERS), len(CONTENDERS)):
                shards.restore()
                dist.barrier()
                started = time.perf_counter()
                CONTENDERS[name](shards)
                us = torch.tensor((time.perf_counter() - started) * 1e6)
                dist.all_reduce(us, dist.ReduceOp.MAX)
                elapsed[name].append(us.item())
    return elapsed


def spread(values: Sequence[float]) -> Spread:
    q1, median, q3 = statistics.quantiles(values, n=4)
    return {"median": median, "q1": q1, "q3": q3}


def run_case(inputs: str, dtype: str) -> Result:
    shards = make_shards(inputs, getattr(torch, dtype))
    check(shards)
    elapsed = time_rounds(shards)
    ours = elapsed["dsd_kernels, histograms"]
    rows: list[Row] = []
    for name, us in elapsed.items():
        shards.restore()
        n_bytes, n_messages = sent(name, shards)
        ratio = spread([theirs / own for theirs, own in zip(us, ours, strict=True)])
        rows.append({"name": name, "us": spread(us), "ratio": ratio, "n_bytes": n_bytes, "n_messages": n_messages})
    return {
        "inputs": inputs,
        "dtype": dtype,
        "n_tensors": len(shards.k),
        "n_weights": sum(tensor.numel() for tensor in shards.tensors),
        "processes": dist.get_world_size(),
        "rows": rows,
    }


@torch.no_grad()
def in_group(rank: int, n_ranks: int, folder: str, cases: Sequence[tuple[str, str]]) -> None:
    """Run the cases as one rank; the first writes what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=n_ranks)
    results = []
    for inputs, dtype in cases:
        results.append(run_case(inputs, dtype))
        if rank == 0:
            print(f"{n_ranks} processes, {label(inputs)}, {dtype}: {in_words(results[-1])}", flush=True)
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def in_words(result: Result) -> str:
    return "; ".join(f"{row['name']} {number(row['us']['median'])} us" for row in result["rows"])


def measure(processes: Sequence[int], cases: Sequence[tuple[str, str]]) -> Report:
    """All cases over each number of processes."""
    described = machine.describe("cpu")
    described["threads"] = 1  # in each process
    results: list[Result] = []
    for n_ranks in processes:
        with tempfile.TemporaryDirectory() as folder:
            start_processes(in_group, (n_ranks, folder, cases), nprocs=n_ranks, start_method="forkserver")
            results += json.loads(Path(folder, "results.json").read_text())
    return {"schema": SCHEMA, "machine": described, "results": results}


def load(path: Path) -> Report:
    """Read what `--output` wrote.

    Raises:
        OSError, ValueError: no such file; no report of this schema; each names the file.
    """
    report = json.loads(path.read_text())
    if report.get("schema") != SCHEMA or "results" not in report:
        raise ValueError(f"{path}: expected a report of schema {SCHEMA}, written by benchmarks.ranks --output")
    return cast("Report", report)


def markdown(report: Report) -> str:
    """A table: a row for each case, a column for each contender's time and bytes."""
    names = [row["name"] for row in report["results"][0]["rows"]]
    header = ["processes", "weights", "dtype", "tensors", *(f"{name}, µs" for name in names[:1])]
    header += [f"{name}, time / ours" for name in names[1:]] + ["ours, MB", "theirs, MB", "theirs / ours, bytes"]
    lines = [header, ["---:", "---", "---", *["---:"] * (len(header) - 3)], *map(cells, report["results"])]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\nMeasured on: {machine.one_line(report['machine'])}."


def cells(result: Result) -> list[str]:
    ours, *others = result["rows"]
    theirs = others[0]["n_bytes"]
    return [
        str(result["processes"]),
        label(result["inputs"]),
        result["dtype"],
        str(result["n_tensors"]),
        number(ours["us"]["median"]),
        *(times(row["ratio"]["median"]) for row in others),
        f"{ours['n_bytes'] / 1e6:.3g}",
        f"{theirs / 1e6:.3g}",
        times(theirs / ours["n_bytes"]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES, help="how many, on this machine")
    parser.add_argument(
        "--inputs", nargs="+", choices=sorted({inputs for inputs, _ in CASES}), help="some of the cases"
    )
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.inputs is None or case[0] in options.inputs]
    report = measure(options.processes, cases)
    print(markdown(report))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
