"""Checks that run on several ranks: gloo processes on this machine, started once for all the checks of a file."""

import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessException

Check = Callable[[Path], None]
# imported once, by the server that the ranks are forked from, before it has any threads
PRELOADED = ["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
_PATIENCE = timedelta(seconds=60)  # of ranks that wait for one that has failed


def failures(n_ranks: int, checks: Sequence[Check], folder: Path) -> dict[str, str]:
    """{check: what a rank said as it failed}, of those that did, and of those that a dead rank kept from running."""
    mp.set_forkserver_preload([*PRELOADED, "dsd_kernels"])
    try:
        mp.start_processes(_rank, (n_ranks, checks, folder), nprocs=n_ranks, start_method="forkserver")
    except ProcessException as error:
        return {check.__name__: str(error) for check in checks}
    return {path.stem.split("-")[0]: path.read_text() for path in folder.glob("*.failed")}


def _rank(rank: int, n_ranks: int, checks: Sequence[Check], folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", store, rank=rank, world_size=n_ranks, timeout=_PATIENCE)
    for check in checks:
        own = folder / check.__name__
        own.mkdir(exist_ok=True)
        try:
            check(own)
        except Exception:
            (folder / f"{check.__name__}-{rank}.failed").write_text(traceback.format_exc())
        dist.barrier()
    dist.destroy_process_group()
