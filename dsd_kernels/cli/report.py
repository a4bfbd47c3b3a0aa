"""What is left at the end of a run: the table by phase, the sentence that says what it shows, and metrics.json."""

import json
import math
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dsd_kernels.cli.progress import say
from dsd_kernels.cli.run import Run
from dsd_kernels.cli.tables import loss, percent, print_table, short
from dsd_kernels.files import replace_file
from dsd_kernels.ops.backends import backends
from dsd_kernels.training.arm import phase_names
from dsd_kernels.training.jsonable import finite
from dsd_kernels.training.machine import machine_line, versions

BASELINE = (
    "The baseline trains for the same number of epochs from the same initial weights, with the same batches in the "
    "same order, the same dropout and the same learning rate in every epoch. It is never pruned: the mask is the "
    "whole difference."
)

TRAIN_LOSS = "Train loss is the mean over the phase's last epoch, while weights move; test loss is measured after it."


def introduce(run: Run, console: Console) -> None:
    """What is trained, on what, with which code."""
    device = run.dsd.device.type
    serving = next(row.backend for row in backends() if row.device == device and row.active)
    n_weights = sum(p.numel() for p in run.dsd.model.parameters())
    say(console, f"{run.config.model} of {n_weights:,} weights on {run.config.device}, {serving} backend.")
    if not run.ranks.alone:
        say(console, f"{run.ranks.size} ranks: each batch of {run.config.batch_size} is divided among them.")
    say(console, f"Data: {run.task.description}.")
    say(console, f"Its SHA-256 is {run.task.sha256}.")
    say(console, BASELINE, wrap=True)
    say(console, f"Resumed at: {run.position}.\n" if run.dsd.epoch or run.dsd.batch else "")


def conclude(run: Run, console: Console) -> None:
    """The tables, and the sentence that says what they show."""
    print_table(console, plan_table(run))
    print_table(console, phase_table(run))
    say(console, TRAIN_LOSS, wrap=True)
    say(console, conclusion(run), wrap=True)


def plan_rows(run: Run) -> list[dict[str, Any]]:
    """One row per parameter: how many weights each sparse phase pruned, or why none."""
    return [
        {
            "name": row.name,
            "shape": list(row.shape),
            "n": row.n,
            "pruned": [plan[row.name] for plan in run.dsd.plans] if row.prunable else [],
            "reason": row.reason,
        }
        for row in run.dsd.flow.make_plan(0.0).rows
    ]


def plan_table(run: Run) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="What the sparse phases pruned, and what not")
    table.add_column("parameter")
    table.add_column("shape")
    table.add_column("weights", justify="right")
    table.add_column("pruned")
    for row in plan_rows(run):
        pruned = pruned_in_turn(row["pruned"], row["n"]) or f"no: {row['reason'] or 'no sparse phase'}"
        table.add_row(row["name"], "x".join(map(str, row["shape"])), f"{row['n']:,}", pruned)
    return table


def pruned_in_turn(counts: list[int], n: int) -> str:
    """What the sparse phases pruned of n weights, one after the other; the same again only as a count."""
    groups = [(count, len(list(same))) for count, same in groupby(counts)]
    return ", then ".join(
        f"{count:,} ({percent(count / n)})" + (f" x{times}" if times > 1 else "") for count, times in groups
    )


def phase_rows(run: Run) -> list[dict[str, Any]]:
    """One row per phase: the records of both arms at the phase's last epoch."""
    schedule = run.dsd.flow.schedule
    rows = []
    for name, start, phase in zip(phase_names(schedule), schedule.starts, schedule, strict=True):
        last = start + phase.length
        records = {arm.name: arm.records[last - 1] for arm in run}
        rows.append({"phase": name, "first_epoch": start + 1, "last_epoch": last, **records})
    return rows


def phase_table(run: Run) -> Table:
    """The table by phase, at most 80 columns wide unless its numbers are longer than usual."""
    title = f"At the end of each phase: DSD beside the baseline (loss in {run.task.loss_unit})"
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title=title)
    table.add_column("\nphase", no_wrap=True)
    for header in ("\nepoch", "\nlr", "pruned\nasked", "\nactual"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("train\nloss", "test\nloss", "test\nacc."):
        table.add_column(f"{header}\nDSD", justify="right", style="bold", no_wrap=True)
        table.add_column("\n\nbase", justify="right", no_wrap=True)
    for row in phase_rows(run):
        dsd, baseline = row["dsd"], row["baseline"]
        table.add_row(
            row["phase"],
            f"{row['first_epoch']}-{row['last_epoch']}",
            short(dsd["lr"]),
            percent(dsd["sparsity_asked"]),
            percent(dsd["sparsity_actual"]),
            *(loss(record["train_loss"]) for record in (dsd, baseline)),
            *(loss(record["test_loss"]) for record in (dsd, baseline)),
            *(f"{record['test_accuracy']:.2%}" for record in (dsd, baseline)),
        )
    return table


def conclusion(run: Run) -> str:
    """What the difference between the arms means, and what it does not."""
    if diverged := divergence(run):
        return (
            f"Training diverged: the loss is not finite from {diverged}. The comparison means nothing; "
            f"try a smaller --lr than {run.config.lr:g}."
        )
    dsd, baseline = run.dsd.records[-1], run.baseline.records[-1]
    n, item = run.task.n_test, run.task.item
    n_more = dsd["test_right"] - baseline["test_right"]
    loss_difference = dsd["test_loss"] - baseline["test_loss"]
    return (
        f"At the end DSD is {n_more / n * 100:+.2f} points from the baseline in test accuracy ({n_more:+,} of {n:,} "
        f"{item}s; one {item} is {100 / n:.2g} points) and {loss_difference:+.4f} {run.task.loss_unit} in test loss. "
        "A single run shows nothing about a gain: compare 20 or more seeds in pairs before claiming any "
        "(dsd-kernels study)."
    )


def divergence(run: Run) -> str:
    """The arms whose loss is not finite, and the epoch in which that began; empty if there is none."""
    found = []
    for arm in run:
        finite = [math.isfinite(record["train_loss"]) and math.isfinite(record["test_loss"]) for record in arm.records]
        if not all(finite):
            found.append(f"epoch {finite.index(False) + 1} of {arm.name}")
    return " and ".join(found)


def write_metrics(run: Run, path: Path) -> None:
    """Everything that the table and the picture were made of, and what it depends on."""
    metrics = {
        "config": run.config.to_dict(),
        "versions": versions(),
        "machine": machine_line(),
        "data": {"description": run.task.description, "sha256": run.task.sha256, "n_test": run.task.n_test},
        "loss_unit": run.task.loss_unit,
        "epochs": {arm.name: arm.records for arm in run},
        "phases": phase_rows(run),
        "plan": plan_rows(run),
        "weights": run.dsd.history.to_dict() if run.dsd.history else None,
        "baseline": BASELINE,
        "conclusion": conclusion(run),
    }
    replace_file(path, (json.dumps(finite(metrics), indent=2, allow_nan=False) + "\n").encode())
