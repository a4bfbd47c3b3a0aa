"""Arguments that flows share: how they are checked, and what becomes one value for each phase."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from dsd_kernels import masks
from dsd_kernels.masks import PlanOptions
from dsd_kernels.schedule import Phase, Schedule, check_length, check_lr_factor
from dsd_kernels.sparsity import check_sparsity

SELECTIONS = ("magnitude", "random")

_Number = TypeVar("_Number", int, float)


class FlowOptions(PlanOptions, total=False):
    """What every flow hands on to `Flow`: unit, selection, seed, and the options of `masks.plan`."""

    unit: str
    selection: str
    seed: int


def plan_options(options: Mapping[str, object]) -> PlanOptions:
    """Those of the options that `masks.plan` takes."""
    names = PlanOptions.__annotations__
    return {name: value for name, value in options.items() if name in names}  # type: ignore[return-value]


def phase_sparsity(model: nn.Module, sparsity: object, options: Mapping[str, object], name: str = "sparsity") -> float:
    """The sparsity of the sparse phases: as given, or the overall one of a dict distribution."""
    if isinstance(options.get("distribution"), Mapping):
        return masks.plan(model, sparsity, **plan_options(options)).sparsity  # type: ignore[arg-type]
    check_sparsity(name, sparsity)
    return sparsity  # type: ignore[return-value]


def schedule_of(*phases: Phase) -> Schedule:
    """The phases without those of length 0, but for the last: it says what holds at the end."""
    return Schedule([*(phase for phase in phases[:-1] if phase.length), phases[-1]])


def check_lengths(**lengths: object) -> None:
    """Raise unless every value is the length of a phase."""
    for name, value in lengths.items():
        check_length(name, value)


def check_count(name: str, value: object) -> None:
    """Raise unless the value says how often something is done: an integer, 1 or more."""
    check_length(name, value)
    if value == 0:
        raise ValueError(f"{name}: expected an integer, 1 or more, got 0")


def per_iteration(
    name: str, value: _Number | Sequence[_Number], iterations: int, check: Callable[[str, object], None]
) -> list[_Number]:
    """One value for every iteration, each checked."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        check(name, value)
        return [value] * iterations
    if len(value) != iterations:
        raise ValueError(f"{name}: expected {iterations} values, one per iteration, got {len(value)}")
    for i, item in enumerate(value):
        check(f"{name}[{i}]", item)
    return list(value)


def check_lr_factors(lr_factors: object, expected: str, *lengths: int) -> list[float]:
    """The factors as a list, which must have one of the lengths."""
    if not isinstance(lr_factors, Sequence) or isinstance(lr_factors, str):
        raise TypeError(f"lr_factors: expected a sequence of numbers, got {lr_factors!r}")
    if len(lr_factors) not in lengths:
        raise ValueError(f"lr_factors: expected {expected}, got {len(lr_factors)}")
    for i, factor in enumerate(lr_factors):
        check_lr_factor(f"lr_factors[{i}]", factor)
    return list(lr_factors)
