"""`dsd-kernels doctor`: what is here, and which code serves which op on which device."""

import re
import shutil
import subprocess

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dsd_kernels.cli.progress import say
from dsd_kernels.cli.tables import print_table
from dsd_kernels.ops.backends import OPS, BackendStatus, backends, has_kernel
from dsd_kernels.training.machine import machine_line, versions


@click.command()
def doctor() -> None:
    """Show versions, devices, and the backend of each op.

    For every op and device: which backend serves it and why, and which ones are not available and why not.
    """
    console = Console()
    for name, found in versions().items():
        say(console, f"{name:14}{found or 'not installed'}")
    for compiler in ("c++", "nvcc"):
        say(console, f"{compiler:14}{_compiler(compiler)}")
    say(console, f"{'machine':14}{machine_line()}")
    for device in _devices():
        say(console, f"{'device':14}{device}")
    rows = backends()
    print_table(console, _serving_table(rows))
    print_table(console, _backend_table(rows))


def _compiler(name: str) -> str:
    """The line of `--version` that has the number: g++ and clang++ begin with it, nvcc ends with it."""
    path = shutil.which(name)
    if path is None:
        return "not installed"
    lines = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line for line in lines if re.search(r"\d\.\d", line)), path)


def _devices() -> list[str]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    return [f"cpu ({torch.get_num_threads()} threads)", *(f"cuda:{i} ({name})" for i, name in enumerate(gpus))]


def _serving_table(rows: list[BackendStatus]) -> Table:
    """Op by device: the backend that serves it."""
    table = Table(box=box.SIMPLE_HEAD, title="Backend that serves each op")
    table.add_column("op")
    for device in ("cpu", "cuda"):
        table.add_column(device)
    for op in OPS:
        table.add_row(op, *(_serving(op, [row for row in rows if row.device == device]) for device in ("cpu", "cuda")))
    return table


def _serving(op: str, rows: list[BackendStatus]) -> str:
    """The backend that serves an op on a device and why, or why none does."""
    active = next((row for row in rows if row.active), None)
    if active and active.backend == "compiled" and not has_kernel(op, active.device):
        return "reference (no compiled kernel)"
    return f"{active.backend} ({active.reason})" if active else f"none ({_reason(rows[0])})"


def _reason(row: BackendStatus) -> str:
    """Why a backend serves or cannot; nothing for one that could but is not asked to."""
    return "" if row.available and not row.active else row.reason.rstrip(".")


def _backend_table(rows: list[BackendStatus]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Backends, and why not")
    for title in ("backend", "device", "available", "why"):
        table.add_column(title)
    for row in rows:
        table.add_row(row.backend, row.device, "yes" if row.available else "no", _reason(row))
    return table
