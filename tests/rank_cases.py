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
    """{check: what the first rank to fail said}, of those that did, and of those that a dead rank kept from running."""
    mp.set_forkserver_preload([*PRELOADED, "dsd_kernels"])
    death = ""
    try:
        mp.start_processes(_rank, (n_ranks, checks, folder), nprocs=n_ranks, start_method="forkserver")
    except ProcessException as error:
        death = str(error)
    said = sorted(folder.glob("*.failed"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found = {check.__name__: death for check in checks if death and not (folder / f"{check.__name__}.done").exists()}
    return found | {path.stem.split("-")[0]: path.read_text() for path in said}


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
        (folder / f"{check.__name__}.done").touch()
    dist.destroy_process_group()
