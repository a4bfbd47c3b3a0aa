"""The arms of a study: each a method with the same number of epochs as all others, made from one config."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from dsd_kernels import flows, masks
from dsd_kernels.flows.base import Flow
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.tasks import Task
from dsd_kernels.training.arm import Arm
from dsd_kernels.training.build import build_dsd, build_optimizer
from dsd_kernels.training.config import Config

BASELINE, LLR = "baseline", "llr"
TURN = 0.05  # AC/DC: phases of 5 epochs in 100, after a warm-up of 10 (Peste et al. 2021)
WARMUP = 0.1
MOST_PARTITIONS = 4  # GaP: 4 for ResNet-50 (Ma et al. 2022)


@dataclass(frozen=True)
class Budget:
    """How the epochs of a config are divided: those before, between and after DSD's first and last change.

    Every arm has `total` epochs, and does in its last `last` ones whatever it does when it fine-tunes.
    """

    dense: int
    middle: int
    last: int

    @classmethod
    def of(cls, config: Config) -> "Budget":
        return cls(config.dense, config.iterations * (config.sparse + config.redense) - config.redense, config.redense)

    @property
    def total(self) -> int:
        return self.dense + self.middle + self.last

    def share(self, fraction: float) -> int:
        """A fraction of all epochs, one at least."""
        return max(1, round(fraction * self.total))


def lr_factors(config: Config) -> list[tuple[int, float]]:
    """Lengths and factors of the learning rate of DSD's phases."""
    first, *rest = config.lr_factors
    factors = rest if len(rest) == 2 * config.iterations else rest * config.iterations
    lengths = [config.dense, *[config.sparse, config.redense] * config.iterations]
    return list(zip(lengths, [first, *factors], strict=True))


def _baseline(config: Config, model: nn.Module, **_: Any) -> Flow:
    return flows.Dense(build_optimizer(config, model), model, lengths=[Budget.of(config).total])


def _llr(config: Config, model: nn.Module, **_: Any) -> Flow:
    lengths, factors = zip(*lr_factors(config), strict=True)
    return flows.Dense(build_optimizer(config, model), model, lengths=lengths, lr_factors=factors)


def _dsd(config: Config, model: nn.Module, **_: Any) -> Flow:
    return build_dsd(config, model, config.sparsity)


def _dsd_random(config: Config, model: nn.Module, *, seed: int, **_: Any) -> Flow:
    return build_dsd(config, model, config.sparsity, selection="random", seed=seed)


def _prune_once(config: Config, model: nn.Module, **options: Any) -> Flow:
    budget = Budget.of(config)
    length = budget.middle + budget.last
    return flows.PruneOnce(build_optimizer(config, model), model, dense=budget.dense, sparse=length, **options)


def _iterative_dsd(config: Config, model: nn.Module, **options: Any) -> Flow:
    budget = Budget.of(config)
    between = budget.middle // 3
    if not between:
        raise ValueError(f"needs 3 epochs or more between the first and the last phase, got {budget.middle}")
    first = (budget.middle - between + 1) // 2
    return flows.DSD(
        build_optimizer(config, model),
        model,
        dense=budget.dense,
        sparse=(first, budget.middle - between - first),
        redense=(between, budget.last),
        iterations=2,
        lr_factors=(1, 1, 1),
        **options,
    )


def _iht(config: Config, model: nn.Module, **options: Any) -> Flow:
    budget = Budget.of(config)
    length = (budget.middle + budget.last) // 4
    warm_start = budget.total - 4 * length
    if not length:
        raise ValueError(f"needs 4 epochs or more after the first phase, got {budget.total - budget.dense}")
    optimizer = build_optimizer(config, model)
    return flows.IHT(optimizer, model, warm_start=warm_start, sparse=length, dense=length, iterations=2, **options)


def _acdc(config: Config, model: nn.Module, **options: Any) -> Flow:
    budget = Budget.of(config)
    turn, before = budget.share(TURN), budget.dense + budget.middle
    iterations = (before - budget.share(WARMUP)) // (2 * turn)
    return flows.ACDC(
        build_optimizer(config, model),
        model,
        warmup=before - 2 * turn * iterations,
        sparse=turn,
        dense=turn,
        iterations=iterations,
        final=budget.last,
        **options,
    )


def _growing(kind: Callable[..., Flow], config: Config, model: nn.Module, **options: Any) -> Flow:
    budget = Budget.of(config)
    partitions = min(MOST_PARTITIONS, len(masks.plan(model, 0.0).prunable))
    grow = budget.share(TURN)
    rounds = (budget.dense + budget.middle) // (partitions * grow)
    return kind(
        build_optimizer(config, model),
        model,
        partitions=partitions,
        grow=grow,
        rounds=rounds,
        final=budget.total - partitions * grow * rounds,
        **options,
    )


def _gap(config: Config, model: nn.Module, **options: Any) -> Flow:
    return _growing(flows.GaP, config, model, **options)


def _pgap(config: Config, model: nn.Module, **options: Any) -> Flow:
    return _growing(flows.ParallelGaP, config, model, **options)


def _gradual(config: Config, model: nn.Module, **options: Any) -> Flow:
    budget = Budget.of(config)
    every = budget.share(TURN)
    n_prunes = max(1, budget.middle // every)
    return flows.Gradual(
        build_optimizer(config, model),
        model,
        dense=budget.dense + budget.middle - every * n_prunes,
        every=every,
        n_prunes=n_prunes,
        final=budget.last,
        **options,
    )


@dataclass(frozen=True)
class Method:
    """How an arm is made, and what it is in one line."""

    build: Callable[..., Flow]
    about: str
    has_own_lr: bool = False


METHODS = {
    BASELINE: Method(_baseline, "the same number of epochs, never pruned, at a constant learning rate", True),
    LLR: Method(_llr, "never pruned, at the learning rate of DSD in every epoch", True),
    "dsd": Method(_dsd, "dense, sparse, re-dense (Han et al. 2017)", True),
    "dsd-random": Method(_dsd_random, "as dsd, with a random mask in place of the smallest weights", True),
    "prune-once": Method(_prune_once, "pruned where dsd is, and sparse to the end"),
    "iterative-dsd": Method(_iterative_dsd, "sparse and re-dense twice in the same epochs (Han et al. 2017)"),
    "iht": Method(_iht, "sparse and dense in turn, a threshold at the end (Jin et al. 2016)"),
    "acdc": Method(_acdc, "AC/DC: short turns, then sparse to the end (Peste et al. 2021)"),
    "gap": Method(_gap, "grow-and-prune, one partition after the other (Ma et al. 2022)"),
    "pgap": Method(_pgap, "grow-and-prune by workers in parallel, each in turn here (Ma et al. 2022)"),
    "gradual": Method(_gradual, "sparsity rises along a cubic curve (Zhu & Gupta 2017)"),
}


def make_arm(name: str, config: Config, task: Task, seed: int) -> Arm:
    """An arm of a study, at its beginning.

    Args:
        name: one of `METHODS`.
        config: the epochs, the sparsity (the first one, but for dsd and dsd-random, which may have several) and all
            else.
        task: its data are on the config's device.
        seed: the same for all arms that are compared.

    Raises:
        ValueError: the config's epochs or layers are too few for the method.
    """
    method = METHODS[name]
    options = {"sparsity": config.sparsity[0], "distribution": config.distribution, "seed": seed}

    def build(model: nn.Module) -> Flow:
        return method.build(config, model, **options)

    return Arm(
        name,
        task,
        build,
        seed=seed,
        batch_size=config.batch_size,
        device=config.device,
        schedule_lr=None if method.has_own_lr else lambda optimizer: follow_dsd(optimizer, config),
    )


def follow_dsd(optimizer: MaskedSGD, config: Config) -> LambdaLR:
    """DSD's learning rate in every epoch, whatever the phases of the flow are."""
    factors = [factor for length, factor in lr_factors(config) for _ in range(length)]
    return LambdaLR(optimizer, lambda epoch: factors[min(epoch, len(factors) - 1)])


def problems(names: tuple[str, ...], config: Config, task: Task) -> Iterator[str]:
    """Why arms cannot be made with this config, in one line each."""
    for name in names:
        try:
            arm = make_arm(name, config, task, seed=0)
        except ValueError as error:
            yield f"{name}: {str(error).partition(chr(10))[0]}"
            continue
        if arm.n_epochs != (total := Budget.of(config).total):
            yield f"{name}: takes {arm.n_epochs} epochs in place of {total}"
