"""`dsd-kernels bench`: the benchmark, which is benchmarks/ in a checkout and dsd_kernels.benchmarks in a wheel."""

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import click


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Measure what a mask costs on this machine; bench --help."""
    if "OMP_WAIT_POLICY" not in os.environ:  # this process has loaded torch, which reads it once
        command = [sys.executable, "-m", "dsd_kernels", "bench", *arguments]
        return subprocess.call(command, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    code: int = load().main(arguments, "dsd-kernels bench")
    return code


def load() -> ModuleType:
    """The command of the benchmark, wherever this installation has it."""
    for package in ("dsd_kernels.benchmarks", "benchmarks"):
        if find_spec(package):
            return importlib.import_module(f"{package}.__main__")
    raise click.ClickException("this copy came without benchmarks/: install the wheel, or run in a checkout")
