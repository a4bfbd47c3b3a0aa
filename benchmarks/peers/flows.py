"""What a flow costs beside the training that it steers: the step with which a phase begins, and an epoch of training.

A flow whose phases last one epoch each, the shortest there are, takes such a step after every epoch; others seldom.
"""

from collections.abc import Callable
from copy import deepcopy
from itertools import repeat
from typing import Any

from torch import nn

from dsd_kernels import MaskedSGD, flows

from ..workloads import BATCH, Training
from .contender import HYPERPARAMETERS, Contender, Task
from .trainings import training_step, unmasked_sgd

N_BATCHES = -(-1437 // BATCH)  # of an epoch of the digits
DSD = {"dense": 1, "sparse": 1, "redense": 2, "sparsity": 0.5}
IHT = {"warm_start": 1, "sparse": 1, "dense": 1, "iterations": 1, "sparsity": 0.5}
GRADUAL = {"dense": 1, "every": 1, "n_prunes": 3, "final": 1, "sparsity": 0.5}
ACDC = {"warmup": 1, "sparse": 1, "dense": 1, "iterations": 1, "final": 1, "sparsity": 0.5}
GAP = {"partitions": 4, "grow": 1, "rounds": 2, "final": 1, "sparsity": 0.5}


def step_of(kind: type[flows.Flow], position: int, **options: Any) -> Callable[[Training], Task]:
    """The step after `position` others, of a flow over a network that has momentum."""

    def bind(training: Training) -> Task:
        model = training.copy()
        optimizer = MaskedSGD(model.parameters(), **HYPERPARAMETERS)
        training_step(training, model, optimizer).run()
        weights, flow = deepcopy(model.state_dict()), list[flows.Flow]()

        def prepare() -> None:
            optimizer.densify()
            model.load_state_dict(weights)  # to prune what is pruned already is an easier job
            flow[:] = [kind(optimizer, model, **options)]
            for _ in repeat(None, position):
                flow[0].step()

        def run() -> flows.Flow:
            flow[0].step()
            return flow[0]

        return Task(run, prepare)

    return bind


def epoch(training: Training) -> Task:
    step = unmasked_sgd(training).run

    def run() -> nn.Module:
        for _ in range(N_BATCHES - 1):
            step()
        model: nn.Module = step()
        return model

    return Task(run)


def ours(what: str, kind: type[flows.Flow], position: int, **options: Any) -> Contender:
    return Contender(f"dsd_kernels.flows.{kind.__name__}, {what}", step_of(kind, position, **options), is_usual=True)


FLOWS = (
    ours("sparse begins", flows.DSD, 0, **DSD),
    ours("re-dense begins", flows.DSD, 1, **DSD),
    ours("an epoch within a phase", flows.DSD, 2, **DSD),
    ours("sparse begins, by ERK", flows.DSD, 0, **DSD, distribution="erk"),
    ours("sparse begins, by a global threshold", flows.DSD, 0, **DSD, distribution="global"),
    ours("sparse begins, 2:4", flows.DSD, 0, **DSD, structure="2:4"),
    ours("sparse begins, at random", flows.DSD, 0, **DSD, selection="random"),
    ours("re-dense begins, values restored", flows.DSD, 1, **DSD, regrown="restore"),
    ours("the threshold at the end", flows.IHT, 2, **IHT),
    ours("the next gradual step", flows.Gradual, 2, **GRADUAL),
    ours("dense begins", flows.ACDC, 1, **ACDC),
    ours("the next partition grows", flows.GaP, 0, **GAP),
    ours("the next worker starts", flows.ParallelGaP, 0, **GAP),
    ours("a round ends", flows.ParallelGaP, 3, **GAP),
    Contender("an epoch of training", epoch, is_usual=True),
)
