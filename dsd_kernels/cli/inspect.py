"""`dsd-kernels inspect`: the layers of a run's checkpoint, their masks, and whether every promise about them holds."""

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from dsd_kernels.cli import checkpoint
from dsd_kernels.cli.config import Config
from dsd_kernels.cli.progress import say
from dsd_kernels.cli.run import build_flow
from dsd_kernels.cli.tasks import network_like
from dsd_kernels.flows.dsd import DSD


@click.command()
@click.argument("path", metavar="CHECKPOINT", type=click.Path(path_type=Path))
def inspect(path: Path) -> int:
    """Show and verify the masks in a run's checkpoint.

    They are those of the DSD network. CHECKPOINT is the file, or the output folder of a run. The exit code is 1 if a
    promise about masks is broken.
    """
    state = checkpoint.load(path)
    flow = restore(state)
    console = Console()
    say(console, f"{state['config']['model']} run, {state['position']}")
    say(console, f"DSD network: {flow.position} of {flow.schedule.length} epochs, {flow.phase.name} phase")
    console.print(layer_table(flow, state["arms"]["dsd"]["plans"]))
    try:
        verification = flow.optimizer.verify()
    except RuntimeError as error:
        click.echo(str(error), err=True)
        return 1
    say(console, f"{verification}\nEvery promise about masks holds.")
    return 0


def restore(state: dict[str, Any]) -> DSD:
    """The DSD arm of a checkpoint, on the CPU."""
    config, arm = Config.from_dict(state["config"]), state["arms"]["dsd"]
    model = network_like(config.model, arm["model"])
    flow = build_flow(config, model, config.sparsity)
    model.load_state_dict(arm["model"])
    flow.optimizer.load_state_dict(arm["optimizer"])
    flow.load_state_dict(arm["flow"])
    return flow


def layer_table(flow: DSD, plans: list[dict[str, int]]) -> Table:
    """One row per parameter: what the phase asked for, and what the masks keep."""
    asked = plans[-1] if flow.phase.sparsity > 0 else {}
    actual = flow.optimizer.sparsity().per_parameter
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer")
    table.add_column("shape")
    for title in ("weights", "asked", "actual", "kept"):
        table.add_column(title, justify="right")
    table.add_column("not pruned because")
    for row in flow.make_plan(0.0).rows:
        sparsity = actual[row.parameter]
        table.add_row(
            row.name,
            "x".join(map(str, row.shape)),
            f"{row.n:,}",
            f"{asked[row.name] / row.n:.2%}" if row.name in asked else "-",
            f"{sparsity:.2%}",
            f"{row.n - round(sparsity * row.n):,}",
            row.reason,
        )
    return table
