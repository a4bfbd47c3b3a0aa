"""The contenders: this library, and the ways people do the same job without it, each run as its users run it."""

from ..cases import Case
from ..shapes import n_weights
from .contender import Contender
from .flows import FLOWS
from .prunes import PRUNES
from .selections import SELECTIONS
from .steps import STEPS
from .trainings import TRAININGS

LARGE = 5e7  # weights; from here on one run takes seconds, so only the usual contenders, and of them the faster

# this library comes first: ratios are over the first
CONTENDERS: dict[str, tuple[Contender, ...]] = {
    "step": STEPS,
    "select": SELECTIONS,
    "prune": PRUNES,
    "train": TRAININGS,
    "flow": FLOWS,
}


def contenders(case: Case, device: str, *, full: bool = True, compiled: bool = False) -> list[Contender]:
    """Who can do the job on a device, this library first."""
    only_fast = n_weights(case.shapes) > LARGE or not case.is_usual
    only_usual = only_fast or not full
    return [
        contender
        for contender in CONTENDERS[case.job]
        if device in contender.devices
        and (compiled if contender.compiles else contender.is_usual or not only_usual)
        and not (only_fast and contender.is_slow)
    ]
