"""`dsd-kernels` on ranks that torchrun starts, some of which are killed: a list of deaths, then the arguments.

A death is [attempt, rank, "batch" or "write", n]: in the given attempt of torchrun, the rank is killed within its n-th
training batch, or after it has put the one before aside for its n-th checkpoint, before the new one has its name.
"""

import json
import os
import signal
import sys
from pathlib import Path

from dsd_kernels import tasks
from dsd_kernels.cli import main
from dsd_kernels.training import arm


def dying(call, n):
    """The same call, which kills this process in place of its n-th time."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return counted


if __name__ == "__main__":
    here = [int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])]
    for *place, what, n in json.loads(sys.argv.pop(1)):
        if place == here and what == "batch":
            arm.loss_of = dying(tasks.loss_of, n)
        elif place == here:
            Path.replace = dying(Path.replace, 2 * n - 1)  # two names for each checkpoint but the first
    main()
