"""`dsd-kernels inspect`: the layers of a run's checkpoint, their masks, and whether every promise about them holds."""

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from dsd_kernels.cli.options import FilledPath
from dsd_kernels.cli.progress import note, say
from dsd_kernels.cli.tables import percent, print_table
from dsd_kernels.flows.dsd import DSD
from dsd_kernels.tasks import network
from dsd_kernels.training import checkpoint
from dsd_kernels.training.build import build_dsd
from dsd_kernels.training.config import Config


@click.command()
@click.argument("path", metavar="CHECKPOINT", type=FilledPath(path_type=Path))
def inspect(path: Path) -> int:
    """Show and verify the masks in a run's checkpoint.

    They are those of the DSD network. CHECKPOINT is the file, or the output folder of a run. The exit code is 1 if a
    promise about masks is broken.
    """
    state = checkpoint.load_newest(path, note) if path.is_dir() else checkpoint.load(path)
    with checkpoint.fitting(checkpoint.file_of(path)):
        flow = restore(state)
        heading = f"{state['config']['model']} run, {state['position']}"
        table = layer_table(flow, state["arms"]["dsd"]["plans"])
    console = Console()
    say(console, heading)
    say(console, f"DSD network: {flow.position} of {flow.schedule.length} epochs, {flow.phase.name} phase")
    print_table(console, table)
    return verify(flow, console)


def verify(flow: DSD, console: Console) -> int:
    """Say whether every promise about masks holds; the exit code."""
    try:
        verification = flow.optimizer.verify()
    except RuntimeError as error:
        click.echo(str(error), err=True)
        return 1
    if flow.phase.sparsity > 0:
        say(console, f"{verification}\nEvery promise about masks holds.")
    else:
        say(console, f"No masks in this phase ({flow.phase.name}): nothing to verify.")
    return 0


def restore(state: dict[str, Any]) -> DSD:
    """The DSD arm of a checkpoint, on the CPU."""
    config, arm = Config.from_dict(state["config"]), state["arms"]["dsd"]
    model = network(config.model, state["dimensions"])
    flow = build_dsd(config, model, config.sparsity)
    model.load_state_dict(arm["model"])
    flow.optimizer.load_state_dict(arm["optimizer"])
    flow.load_state_dict(arm["flow"])
    return flow


def layer_table(flow: DSD, plans: list[dict[str, int]]) -> Table:
    """One row per parameter: what its mask keeps, or, in a phase without masks, what the last one pruned."""
    is_sparse = flow.phase.sparsity > 0
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer")
    table.add_column("shape")
    for title in ("weights", *(("asked", "actual", "kept") if is_sparse else ("pruned last",))):
        table.add_column(title, justify="right")
    table.add_column("not pruned because")
    actual = flow.optimizer.sparsity().per_parameter
    asked = plans[-1] if plans else {}
    for row in flow.make_plan(0.0).rows:
        n_asked = asked.get(row.name)
        pruned = "-" if n_asked is None else percent(n_asked / row.n, digits=2)
        cells = [pruned, *kept(row.n, actual[row.parameter])] if is_sparse else [with_count(pruned, n_asked)]
        table.add_row(row.name, "x".join(map(str, row.shape)), f"{row.n:,}", *cells, row.reason)
    return table


def kept(n: int, sparsity: float) -> tuple[str, str]:
    return percent(sparsity, digits=2), f"{n - round(sparsity * n):,}"


def with_count(pruned: str, n: int | None) -> str:
    return pruned if n is None else f"{n:,} ({pruned})"
