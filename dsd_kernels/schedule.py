"""WHEN: a schedule says which phase a position belongs to. Frozen, pure, and free of tensors."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import accumulate
from numbers import Integral, Real

from dsd_kernels.sparsity import check_sparsity

MOMENTUM_POLICIES = ("keep", "zero_regrown", "zero_all")
REGROWN_VALUES = ("zero", "restore")


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one sparsity and one learning rate factor.

    Args:
        name: what to call it, such as "dense", "sparse" or "redense".
        length: how many units (epochs or steps, as the flow counts) it lasts; 0 or more.
        sparsity: fraction of weights that are pruned at its start and stay 0, in [0, 1); 0 is a dense phase. Default 0.
        lr_factor: the learning rate is multiplied by it; a finite number, 0 or more. Default 1.
        momentum: what happens to momentum at its start. "keep": nothing; "zero_regrown": weights that were pruned
            until now and no longer are get momentum 0; "zero_all": all momentum becomes 0. Default "keep".
        regrown: what pruned weights begin from at its start. "zero": 0; "restore": the values that they had before they
            were pruned, which are put back before a new mask is chosen, so that they take part in that choice.
            Default "zero".
        grown: the partition of the layers that is dense in it while the others are sparse, from 0; for flows with
            partitions. Default None, no partition.

    Raises:
        TypeError, ValueError: a value of another type or range, by name.

    Example:
        >>> from dsd_kernels.schedule import Phase
        >>> print(Phase("redense", length=5, lr_factor=0.1))
        redense: length 5, sparsity 0, lr factor 0.1, momentum keep
    """

    name: str
    length: int
    sparsity: float = 0.0
    lr_factor: float = 1.0
    momentum: str = "keep"
    regrown: str = "zero"
    grown: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a string, got {self.name!r}")
        if not self.name:
            raise ValueError("name: expected a string that is not empty, got ''")
        check_length("length", self.length)
        check_sparsity("sparsity", self.sparsity)
        check_lr_factor("lr_factor", self.lr_factor)
        check_choice("momentum", self.momentum, MOMENTUM_POLICIES)
        check_choice("regrown", self.regrown, REGROWN_VALUES)
        if self.grown is not None:
            check_length("grown", self.grown)
            object.__setattr__(self, "grown", int(self.grown))
        # numpy's numbers are welcome, but a state dict holds plain ones only
        object.__setattr__(self, "length", int(self.length))
        object.__setattr__(self, "sparsity", float(self.sparsity))
        object.__setattr__(self, "lr_factor", float(self.lr_factor))

    def __str__(self) -> str:
        text = (
            f"{self.name}: length {self.length}, sparsity {self.sparsity:g}, lr factor {self.lr_factor:g}, "
            f"momentum {self.momentum}"
        )
        text += "" if self.regrown == "zero" else f", regrown {self.regrown}"
        return text + ("" if self.grown is None else f", grown {self.grown}")


@dataclass(frozen=True)
class Schedule:
    """Phases one after another, and the pure question which of them a position belongs to.

    ``starts[i] = sum of the lengths before phase i;  at(position) = the last phase with start <= position``

    Args:
        phases: one or more `Phase`, in order; together longer than 0.

    Raises:
        TypeError, ValueError: no phases, something else than phases, or a total length of 0.

    Notes:
        Position p is the time after p units. A phase of length 0 is passed over, except at the end: at position
        `length` training has finished, and a last phase of length 0 says what holds then; otherwise the last one stays.

    Example:
        >>> from dsd_kernels.schedule import Phase, Schedule
        >>> schedule = Schedule([Phase("dense", 2), Phase("sparse", 3, sparsity=0.5)])
        >>> schedule.length, schedule.starts
        (5, (0, 2))
        >>> [schedule.at(position)[1].name for position in range(6)]
        ['dense', 'dense', 'sparse', 'sparse', 'sparse', 'sparse']
    """

    phases: Sequence[Phase]

    def __post_init__(self) -> None:
        if not isinstance(self.phases, Iterable):
            raise TypeError(f"phases: expected a sequence of Phase, got {self.phases!r}")
        phases = tuple(self.phases)
        for i, phase in enumerate(phases):
            if not isinstance(phase, Phase):
                raise TypeError(f"phases[{i}]: expected a Phase, got {phase!r}")
        object.__setattr__(self, "phases", phases)
        if self.length == 0:
            raise ValueError(f"phases: expected a total length above 0, got {len(phases)} phases of length 0")

    @cached_property
    def length(self) -> int:
        """Units in all phases together."""
        return sum(phase.length for phase in self.phases)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The position at which each phase begins."""
        return tuple(accumulate((phase.length for phase in self.phases[:-1]), initial=0))

    def at(self, position: int) -> tuple[int, Phase]:
        """The phase that a position belongs to.

        Args:
            position: units done, in [0, length].

        Returns:
            Its index and the `Phase`.

        Raises:
            TypeError, ValueError: a position that is no integer in [0, length].
        """
        if isinstance(position, bool) or not isinstance(position, Integral):
            raise TypeError(f"position: expected an integer in [0, {self.length}], got {position!r}")
        if not 0 <= position <= self.length:
            raise ValueError(f"position: expected an integer in [0, {self.length}], got {position}")
        index = bisect_right(self.starts, position) - 1
        return index, self.phases[index]

    def __len__(self) -> int:
        return len(self.phases)

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)

    def __str__(self) -> str:
        return "\n".join(f"{start:>6}  {phase}" for start, phase in zip(self.starts, self.phases, strict=True))

    def to_dicts(self) -> list[dict[str, str | int | float | None]]:
        """One plain dict per phase, of strings, numbers and None, for state dicts and JSON."""
        return [asdict(phase) for phase in self.phases]

    @classmethod
    def from_dicts(cls, phases: Sequence[Mapping[str, object]]) -> "Schedule":
        """The schedule that `to_dicts` wrote; what an earlier version did not know yet has its default.

        Raises:
            TypeError, ValueError: a dict with keys or values that make no `Phase`.
        """
        if not isinstance(phases, Sequence):
            raise TypeError(f"phases: expected a list of dicts, got {phases!r}")
        keys = [field.name for field in fields(Phase)]
        for i, phase in enumerate(phases):
            if not isinstance(phase, Mapping) or not {"name", "length"} <= set(phase) <= set(keys):
                raise ValueError(f"phases[{i}]: expected a dict with the keys {', '.join(keys)}, got {phase!r}")
        return cls([Phase(**phase) for phase in phases])  # type: ignore[arg-type]


def check_length(name: str, value: object) -> None:
    """Raise unless the value is the length of a phase: an integer, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, 0 or more, got {value!r}")
    if int(value) < 0:
        raise ValueError(f"{name}: expected an integer, 0 or more, got {value}")


def check_lr_factor(name: str, value: object) -> None:
    """Raise unless the value is a factor of the learning rate: a finite number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a finite number, 0 or more, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: expected a finite number, 0 or more, got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
