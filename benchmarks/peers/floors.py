"""The memory's own time for as many bytes as a job must move, in the simplest way."""

import torch

from .contender import Task

NAMES = {"scale": "in-place scale of as many bytes", "read": "read of as many bytes", "copy": "copy of as many bytes"}


def floor_kind(device: str, *, reads_only: bool) -> str:
    """A read for what only reads, otherwise an in-place scale; on a GPU a copy.

    A CPU's copy reads what it is about to overwrite too: it would count bytes that an update does not move.
    """
    if device == "cuda":
        return "copy"
    return "read" if reads_only else "scale"


def memory_floor(n_bytes: float, device: str, kind: str) -> Task:
    """What it moves is as warm in the caches as the inputs are for the others."""
    per_element = 4 if kind == "read" else 8  # read, or read and written
    source = torch.ones(max(1, round(n_bytes / per_element)), device=device)
    if kind == "copy":
        target = torch.empty_like(source)
        return Task(lambda: target.copy_(source))
    work = source.sum if kind == "read" else lambda: source.mul_(1.0)
    return Task(work, lambda: source.sum())
