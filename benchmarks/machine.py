"""What a figure is worth nothing without: the machine, the settings, the versions, the commit, the day."""

import os
from datetime import UTC, datetime
from typing import TypedDict

import torch

from dsd_kernels import backends
from dsd_kernels.training.machine import commit, machine_line, versions

from .peers import packages


class Machine(TypedDict):
    """As it stands in the JSON.

    Attributes:
        load: how many processes wanted a CPU in the minute before.
        commit: ends with -dirty where the code was not that of the commit.
    """

    line: str
    device: str
    threads: int
    omp_wait_policy: str | None
    load: float
    backend: str
    versions: dict[str, str]
    commit: str | None
    date: str


def describe(device: str) -> Machine:
    return {
        "line": machine_line(),
        "device": device,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load": round(os.getloadavg()[0], 1),
        "backend": next(row.backend for row in backends() if row.active and row.device == device),
        "versions": {
            name: found
            for name, found in versions().items()
            if found and name in ("python", "torch", "triton", "numpy", "dsd_kernels")
        }
        | packages.versions(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def is_busy(machine: Machine) -> bool:
    """Whether others take so much of the CPUs that threads wait for one: it hits whoever has more parallel regions."""
    return machine["load"] > 0.25 * (os.cpu_count() or 1)


def one_line(machine: Machine) -> str:
    found = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['line']}; {machine['device']}, {machine['backend']} backend, {machine['threads']} threads, "
        f"OMP_WAIT_POLICY={machine['omp_wait_policy']}, load {machine['load']}; {found}; "
        f"commit {machine['commit']}; {machine['date']}"
    )
