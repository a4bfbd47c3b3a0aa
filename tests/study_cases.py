"""Small studies, shared by their tests."""

import json

from cli_cases import invoke

from dsd_kernels.study.arms import METHODS
from dsd_kernels.training.arm import Unwatched

TINY = ("--batch-size", "512", "--dense", "2", "--sparse", "3", "--redense", "2", "--device", "cpu")
FEW = ("--arms", "llr,dsd", "--seeds", "2")


def study(folder, *args):
    result = invoke("study", "--output", folder, *TINY, *args)
    assert result.exit_code == 0, result.output
    return result


def finish(arm):
    """Train to the end."""
    while not arm.finished:
        arm.train_epoch(Unwatched(), stop=lambda: False)


def measured(folder):
    """What was measured, without the time that it took."""
    found = {}
    for path in sorted((folder / "results").glob("*.json")):
        records = json.loads(path.read_text())["records"]
        found[path.name] = [{key: value for key, value in r.items() if key != "seconds"} for r in records]
    return found


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


ALL_ARMS = list(METHODS)
