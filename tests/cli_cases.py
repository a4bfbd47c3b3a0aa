"""Small runs of the command line, shared by its tests."""

import json
import re
from io import StringIO

import torch
from cases import bits_equal
from click.testing import CliRunner
from rich.console import Console

from dsd_kernels.cli.app import app
from dsd_kernels.cli.progress import observer
from dsd_kernels.cli.run import Run
from dsd_kernels.tasks.digits import digits
from dsd_kernels.training import checkpoint
from dsd_kernels.training.config import new_config

TINY = ("--batch-size", "256", "--dense", "1", "--sparse", "2", "--redense", "1", "--device", "cpu")


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "80"})


def train(folder, *args):
    result = invoke("train", "--output", folder, *TINY, *args)
    assert result.exit_code == 0, result.output
    return result


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def tiny_config(**options):
    return new_config({"dense": 2, "sparse": 1, "redense": 1, "batch_size": 256, **options}, "cpu")


def sparse_checkpoint(folder, run=None):
    """A run in the middle of its sparse phase."""
    run = run or Run(tiny_config(), digits())
    for _ in range(2):
        run.dsd.train_epoch(observer(Console(file=StringIO()), run), stop=lambda: False)
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder / "checkpoint.pt", run.state_dict())
    return run


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def assert_one_line(result, *words):
    assert result.exit_code == 2, result.output
    assert re.fullmatch(r"error: .+\n", result.stderr), result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


def assert_same(ours, theirs, path="state"):
    """Equal to the bit, but for the time that it took and what started it."""
    assert type(ours) is type(theirs), path
    if isinstance(ours, torch.Tensor):
        same = bits_equal(ours, theirs) if ours.dtype == torch.float32 else torch.equal(ours, theirs)
        assert same, path
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours.keys() - {"seconds", "launch"}:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), path
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{path}[{i}]")
    else:
        assert ours == theirs, path


def assert_same_run(folder, other):
    assert_same(checkpoint.load(folder), checkpoint.load(other))
    assert_same(*(metrics_of(f) for f in (folder, other)))
