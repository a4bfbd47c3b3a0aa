"""`dsd-kernels` on ranks of which some are killed: the flow of the first arm, a list of deaths, then the arguments.

A death is [attempt, rank, how, n], in torchrun's given attempt: within the rank's n-th training batch it is killed
("batch"), gets SIGTERM ("stop"), damages the last checkpoint and is killed ("damage"), or is frozen while its torchrun
is killed ("freeze", as a host that does not answer); or it is killed while it writes its n-th checkpoint, when the one
before has been put aside ("write").
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

from dsd_kernels import tasks
from dsd_kernels.cli import main, run
from dsd_kernels.flows import GaP
from dsd_kernels.training import arm, checkpoint
from dsd_kernels.training.build import build_dsd, build_optimizer


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def damage_and_kill():
    """Flip every bit of a page in the middle of the last checkpoint."""
    path = Path(sys.argv[sys.argv.index("--output") + 1]) / checkpoint.NAME
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(255 - byte for byte in content[middle : middle + 4096])
    path.write_bytes(content)
    kill()


def freeze():
    print(f"frozen: {os.getpid()}", file=sys.stderr, flush=True)
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGSTOP)


def at_call(n, call, action):
    """The same call, with something done before the n-th time."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == n:
            action()
        return call(*args, **kwargs)

    return counted


def build_gap(config, model, sparsity):
    """GaP in as many epochs as DSD, for the arm that prunes."""
    if not sparsity:
        return build_dsd(config, model, sparsity)
    optimizer = build_optimizer(config, model)
    return GaP(optimizer, model, partitions=2, grow=1, rounds=1, final=2, sparsity=0.75, order="random")


def threads_of_gloo():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


ACTIONS = {
    "batch": kill,
    "stop": partial(signal.raise_signal, signal.SIGTERM),
    "damage": damage_and_kill,
    "freeze": freeze,
}

if __name__ == "__main__":
    flow, deaths = sys.argv.pop(1), json.loads(sys.argv.pop(1))
    if flow == "gap":
        run.build_dsd = build_gap
    here = [int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])]
    for *place, how, n in deaths:
        if place == here and how == "write":
            Path.replace = at_call(2 * n, Path.replace, kill)  # each file has two names to change
        elif place == here:
            arm.loss_of = at_call(n, tasks.loss_of, ACTIONS[how])
    try:
        main()
    finally:
        print(f"threads left: {threads_of_gloo()}", file=sys.stderr, flush=True)
