"""What a result depends on beside its settings: versions, and the machine in one line."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import dsd_kernels

PACKAGES = ("torch", "triton", "numpy", "scipy", "scikit-learn", "matplotlib", "click", "rich")


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and what it stands on; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "dsd_kernels": dsd_kernels.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def machine_line() -> str:
    """The processor, its memory, the GPU if there is one, and the system."""
    parts = [f"{_processor()}, {os.cpu_count()} logical CPUs"]
    if memory := _memory_gib():
        parts.append(f"{memory:.0f} GiB")
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts.append(f"{platform.system()} {platform.machine()}")
    return "; ".join(parts)


def commit() -> str | None:
    """The commit; from DSD_COMMIT in a copy of the files that came without their history, or without git."""
    describe_head = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        described = subprocess.run(
            describe_head, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except FileNotFoundError:
        described = ""
    return described or os.environ.get("DSD_COMMIT")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, OSError, ValueError):
        return None
