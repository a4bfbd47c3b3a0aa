"""`train` over the ranks that torchrun started: how they meet, agree on what is wrong, and name a rank that is lost."""

import gc
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dsd_kernels.cli.errors import USER_ERRORS, RankError, message_of, say_error
from dsd_kernels.training.ranks import Ranks

T = TypeVar("T")
# what gloo says of a lost rank, as errors that have no type of their own: the first message, then those behind it
LOST = re.compile("gloo|pair closure")
SOURCE_LINE = re.compile(r"^.*\[\S+\.cc:\d+\] ")  # where gloo says in its own source that it failed
STORE_PORT = "dsd_kernels/store_port"


def is_first() -> bool:
    """Whether this process is the first rank, or none; known before the ranks have met."""
    return _number("RANK", 0) == 0


def several() -> bool:
    """Whether this process is one of several ranks."""
    return _number("WORLD_SIZE", 1) > 1


def restarted() -> bool:
    """Whether torchrun started these ranks in place of others that failed."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


@contextmanager
def joined(timeout_seconds: float) -> Iterator[Ranks]:
    """Meet the other ranks, if torchrun or its like has started any.

    Args:
        timeout_seconds: how long a rank waits for another one.

    Raises:
        RankError: what goes wrong on one of several ranks, or between them.
    """
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if not several():
        yield Ranks(launch=launch)
        return
    ranks = Ranks(_number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0), launch)
    try:
        with naming_lost_ranks(ranks, lambda: "nothing was written"):
            _join(ranks, timeout_seconds)
            yield ranks
        gc.collect()  # the networks refer to the group
    except RankError:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, to ranks that are left: they have yet to say why
        raise
    except USER_ERRORS as error:
        raise RankError(f"rank {ranks.rank}: {message_of(error)}", speaks=True) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def naming_lost_ranks(ranks: Ranks, way_on: Callable[[], str]) -> Iterator[None]:
    """Say in one line that another rank is gone, once on every host.

    Args:
        ranks: this one and the others.
        way_on: what is left, in words.

    Raises:
        RankError: a message of torch.distributed did not come through.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.alone or not (isinstance(error, dist.DistError) or LOST.search(str(error))):
            raise
        what = SOURCE_LINE.sub("", str(error).strip()).partition("\n")[0].partition(". ")[0]
        text = f"rank {ranks.rank} of {ranks.size} lost another one, or the network to it; {way_on()} ({what})"
        if ranks.local_rank == 0:  # at once: torchrun ends the ranks that are left
            say_error(text)
        raise RankError(text, speaks=False, exit_code=1) from error


def agree(ranks: Ranks, action: Callable[[], T]) -> T:
    """Do something on every rank; what is wrong on one is an error on all of them.

    Raises:
        RankError: an error of the user, which the first rank says.
    """
    if ranks.alone:
        return action()
    result, problem = None, ""
    try:
        result = action()
    except USER_ERRORS as error:
        problem = message_of(error)
    problems = ranks.gather(problem)
    if any(problems):
        rank, text = next((i, text) for i, text in enumerate(problems) if text)
        raise RankError(text if rank == 0 else f"rank {rank}: {text}", speaks=ranks.is_first)
    return result  # type: ignore[return-value]


def from_first(ranks: Ranks, action: Callable[[], T]) -> T:
    """Do something on the first rank alone, and have its result on all of them.

    Raises:
        RankError: as `agree`.
    """
    result = agree(ranks, action if ranks.is_first else lambda: None)
    return ranks.from_first(result)  # type: ignore[no-any-return]


def _join(ranks: Ranks, timeout_seconds: float) -> None:
    backend = "gloo"
    if dist.is_nccl_available() and ranks.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=timeout_seconds)
    _import_what_keeps_the_group()
    store = _fresh_store(ranks, timeout) if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=timeout)


def _import_what_keeps_the_group() -> None:
    """Import now what DistributedDataParallel would, whose functions have the group of that moment for a default.

    The threads of gloo end with the last reference to the group. One that lets go of a tensor while the interpreter
    ends aborts the process, so a run that went well has to end them before.
    """
    import_module("torch.distributed.nn.functional")


def _fresh_store(ranks: Ranks, timeout: timedelta) -> Any:
    """A store of these ranks alone, which lives and dies with the first of them.

    That of torchrun outlives them: after a restart it still has the addresses of ranks that are gone, and a rank that
    reads them before the new ones are there waits in vain. So there it only says where to find the other one.
    """
    host = os.environ["MASTER_ADDR"]
    tcp_store = partial(dist.TCPStore, host, timeout=timeout, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = tcp_store(port=_number("MASTER_PORT", 0), is_master=False)
    if ranks.is_first:
        store = tcp_store(port=0, is_master=True)
        shared.set(STORE_PORT, str(store.port))
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while not _answers(host, port := int(shared.get(STORE_PORT))):
        if time.monotonic() > deadline:
            raise dist.DistError(f"no answer from the first rank at {host}:{port}")
        time.sleep(0.1)
    return tcp_store(port=port, is_master=False)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))
