"""Which parameters of a model may be pruned, and why not: each rule with a reason for people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from dsd_kernels.ops.checks import FLOAT_DTYPES
from dsd_kernels.structure import NM, why_no_groups
from dsd_kernels.text_table import format_table

# Below one 64-bit word of the mask there is nothing to gain, and one weight more or less is over 1.5 % of the layer.
MIN_WEIGHTS = 64

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class LayerPlan:
    """One parameter of a model: may it be pruned, why not, and how many of its weights are to go.

    Attributes:
        name: its name in the model, the first one if it has several.
        parameter: the parameter itself; two plans are compared without it.
        shape, n: its shape, and how many weights it has.
        prunable: whether the plan prunes it.
        reason: why it is left out, or by which pattern it was included against a rule; otherwise empty.
        n_pruned: how many of its weights the plan prunes. Default 0.
        aliases: other names of the same parameter. Default ().
    """

    name: str
    parameter: Tensor = field(repr=False, compare=False)
    shape: tuple[int, ...]
    n: int
    prunable: bool
    reason: str
    n_pruned: int = 0
    aliases: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """The fraction of its weights that the plan prunes, in [0, 1]."""
        return self.n_pruned / self.n if self.n else 0.0


@dataclass(frozen=True)
class PruningPlan:
    """What is pruned in a model, and why the rest is not; `str()` of it is a table.

    Attributes:
        rows: one `LayerPlan` per parameter of the model, in its order.
    """

    rows: tuple[LayerPlan, ...]

    @property
    def prunable(self) -> tuple[LayerPlan, ...]:
        """The rows that the plan prunes."""
        return tuple(row for row in self.rows if row.prunable)

    @property
    def n(self) -> int:
        """Weights in the prunable rows together."""
        return sum(row.n for row in self.prunable)

    @property
    def n_pruned(self) -> int:
        """Weights to be pruned in all rows together."""
        return sum(row.n_pruned for row in self.rows)

    @property
    def sparsity(self) -> float:
        """n_pruned / n: the fraction of the prunable weights that are pruned."""
        return self.n_pruned / self.n if self.n else 0.0

    def sparsities(self) -> dict[Tensor, float]:
        """{parameter: sparsity} of the prunable rows, as `MaskedSGD.prune` takes it.

        Notes:
            ``n_pruned(sparsity, n)`` is exactly the row's n_pruned. A row that loses all its weights gets a number just
            below 1, because a sparsity of 1 is none.
        """
        return {row.parameter: min(row.n_pruned, row.n - 0.25) / row.n if row.n else 0.0 for row in self.prunable}

    def __str__(self) -> str:
        n_model = sum(row.n for row in self.rows)
        lines = [
            ("parameter", "shape", "weights", "pruned", "sparsity", "note"),
            *(_line(r.name, "x".join(map(str, r.shape)), r.n, r.n_pruned, r.prunable, r.reason) for r in self.rows),
            _line("all prunable", "", self.n, self.n_pruned, True, ""),
            _line("all", "", n_model, self.n_pruned, True, ""),
        ]
        return format_table(lines, numbers=(2, 3, 4))


def _line(name: str, shape: str, n: int, n_pruned: int, prunable: bool, note: str) -> tuple[str, ...]:
    sparsity = f"{n_pruned / max(n, 1):.4f}" if prunable else "-"
    return name, shape, str(n), str(n_pruned) if prunable else "-", sparsity, note


@dataclass(frozen=True)
class _Place:
    """Where a model holds a parameter."""

    name: str
    attribute: str
    module: nn.Module


def layer_plans(
    model: nn.Module,
    *,
    exclude_first: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    min_weights: int,
    parameters: Iterable[Tensor] | None,
    nm: NM | None,
) -> list[LayerPlan]:
    """One row per parameter of the model, in its order, each prunable or with the reason why not.

    Args, Raises: see `dsd_kernels.masks.plan`, whose rules these are.
    """
    if isinstance(min_weights, bool) or not isinstance(min_weights, Integral):
        raise TypeError(f"min_weights: expected an integer, got {min_weights!r}")
    places = _places(model)
    names = [place.name for of_parameter in places.values() for place in of_parameter]
    _check_patterns("include", include, names)
    _check_patterns("exclude", exclude, names)
    allowed = None if parameters is None else set(parameters)
    first = next((m for m in model.modules() if isinstance(m, _CONVOLUTIONS)), None) if exclude_first else None
    rows = []
    for parameter, (place, *others) in places.items():
        own_names = (place.name, *(other.name for other in others))
        impossible = _why_impossible(parameter, place, allowed, nm)
        by_rule = _why_not(parameter, place, own_names, first, min_weights)
        prunable, reason = _decide(own_names, impossible, by_rule, include, exclude)
        shape, n = tuple(parameter.shape), parameter.numel()
        rows.append(LayerPlan(place.name, parameter, shape, n, prunable, reason, aliases=own_names[1:]))
    return rows


def _places(model: nn.Module) -> dict[Tensor, list[_Place]]:
    """Every parameter once, with all the places where the model holds it."""
    places: dict[Tensor, list[_Place]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            if is_lazy(parameter):
                raise ValueError(f"model: expected initialised parameters, {name} is not yet; run the model once first")
            places.setdefault(parameter, []).append(_Place(name, attribute, module))
    return places


def _why_impossible(parameter: Tensor, place: _Place, allowed: set[Tensor] | None, nm: NM | None) -> str:
    """Why no option can make the parameter prunable; empty if one can."""
    if parameter.dtype not in FLOAT_DTYPES:
        return f"dtype {parameter.dtype} cannot be pruned"
    if parameter.layout != torch.strided:
        return f"layout {parameter.layout} cannot be pruned"
    if allowed is not None and parameter not in allowed:
        return "parameter is not among the given ones"
    if nm and isinstance(place.module, _TRANSPOSED):
        return "transposed convolution has its inputs in another dimension"
    return why_no_groups(parameter.shape, nm) if nm else ""


def _why_not(parameter: Tensor, place: _Place, names: Sequence[str], first: nn.Module | None, min_weights: int) -> str:
    """The first rule that leaves the parameter out, in words; empty if none does."""
    rules = (
        (len(names) > 1, f"tied to {', '.join(names[1:])}"),
        (not parameter.requires_grad, "frozen (requires_grad is False)"),
        (isinstance(place.module, _EMBEDDINGS), "embedding"),
        (isinstance(place.module, _NORMALISATIONS), "normalisation"),
        (isinstance(place.module, ParametrizationList), "parametrized: the weight is computed from it"),
        (place.attribute.startswith("bias"), "bias"),
        (parameter.dim() < 2, "fewer than 2 dimensions"),
        (place.module is first, "first convolution"),
        (parameter.numel() < min_weights, f"fewer than {min_weights} weights"),
    )
    return next((reason for applies, reason in rules if applies), "")


def _decide(
    names: Sequence[str], impossible: str, by_rule: str, include: Sequence[str], exclude: Sequence[str]
) -> tuple[bool, str]:
    """Whether a parameter is prunable, and the reason: what the user names overrides the rules, `exclude` all."""
    excluded_by, included_by = _first_match(exclude, names), _first_match(include, names)
    if excluded_by:
        return False, f"excluded by {excluded_by!r}"
    if included_by and impossible:
        raise ValueError(f"include or distribution: {included_by!r} names {names[0]}, but its {impossible}")
    if included_by and by_rule:
        return True, f"included by {included_by!r}"
    reason = impossible or by_rule
    return not reason, reason


def _first_match(patterns: Iterable[str], names: Sequence[str]) -> str | None:
    return next((pattern for pattern in patterns if any(matches(pattern, name) for name in names)), None)


def matches(pattern: str, name: str) -> bool:
    return pattern == name or fnmatchcase(name, pattern)


def _check_patterns(argument: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument}: expected names or patterns of parameters, got {pattern!r}")
        if not any(matches(pattern, name) for name in names):
            raise ValueError(f"{argument}: expected names or patterns of parameters, {pattern!r} matches none")
