"""Arguments that flows share: how they are checked, and what becomes one value for each phase."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from dsd_kernels import masks
from dsd_kernels.layers import MIN_WEIGHTS
from dsd_kernels.masks import PlanOptions
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.schedule import Phase, Schedule, check_choice, check_length, check_lr_factor
from dsd_kernels.seeds import check_seed
from dsd_kernels.sparsity import check_sparsity
from dsd_kernels.structure import UNSTRUCTURED

UNITS = ("epoch", "step")
SELECTIONS = ("magnitude", "random")

_Number = TypeVar("_Number", int, float)


class FlowOptions(PlanOptions, total=False):
    """What every flow hands on to `Flow`: unit, selection, seed, and the options of `masks.plan`."""

    unit: str
    selection: str
    seed: int


# of `masks.plan`, as a flow's state dict has them
PLAN_DEFAULTS: PlanOptions = {
    "distribution": "uniform",
    "exclude_first": True,
    "include": [],
    "exclude": [],
    "min_weights": MIN_WEIGHTS,
    "structure": UNSTRUCTURED,
}


def check_options(kind: str, options: Mapping[str, object]) -> None:
    """Raise for an option that a flow does not have; `kind` is its name."""
    names = FlowOptions.__annotations__
    for name, value in options.items():
        if name not in names:
            raise TypeError(f"{name}: {kind} has no such argument, got {value!r}; its options are {', '.join(names)}")


def check_flow(
    optimizer: object, model: object, schedule: object, unit: object, selection: object, seed: object
) -> None:
    """Raise for arguments with which there is no flow."""
    for name, value, expected in (
        ("optimizer", optimizer, MaskedSGD),
        ("model", model, nn.Module),
        ("schedule", schedule, Schedule),
    ):
        if not isinstance(value, expected):
            raise TypeError(f"{name}: expected a {expected.__name__}, got {type(value).__name__}")
    if unit not in UNITS:
        raise ValueError(f"unit: expected epoch or step, got {unit!r}")
    check_choice("selection", selection, SELECTIONS)
    check_seed("seed", seed)
    if masked := optimizer.masked_parameters:  # type: ignore[attr-defined]
        raise ValueError(
            f"optimizer: expected one without masks, {len(masked)} parameters have one; "
            "build the flow before loading the optimizer's state, or call optimizer.densify() first"
        )


def plan_options(options: Mapping[str, object]) -> PlanOptions:
    """Those of the options that `masks.plan` takes."""
    names = PlanOptions.__annotations__
    return {name: value for name, value in options.items() if name in names}  # type: ignore[return-value]


def plain_options(options: Mapping[str, object]) -> dict[str, object]:
    """All options of `masks.plan`, given or not, in plain types that can be compared."""
    found: dict[str, object] = {**PLAN_DEFAULTS, **options}
    for name in ("include", "exclude"):
        found[name] = [found[name]] if isinstance(found[name], str) else list(found[name])  # type: ignore[call-overload]
    if isinstance(distribution := found["distribution"], Mapping):
        found["distribution"] = {name: float(sparsity) for name, sparsity in distribution.items()}
    found["min_weights"] = int(found["min_weights"])  # type: ignore[call-overload]
    return found


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
