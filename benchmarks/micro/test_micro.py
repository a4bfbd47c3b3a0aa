"""Micro-benchmarks for pytest-benchmark, over a million weights: `make micro`."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import SPARSITY
from benchmarks.peers import prunes, selections, steps
from benchmarks.shapes import INPUTS
from benchmarks.workloads import Inputs, make_inputs
from dsd_kernels import MaskedSGD, pack_mask, unpack_mask


@pytest.fixture
def inputs() -> Inputs:
    return make_inputs(INPUTS["1e6"], "cpu")


def test_masked_step(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    benchmark(steps.masked_sgd(inputs).run)


def test_unmasked_step(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    benchmark(steps.unmasked_sgd(inputs).run)


def test_masked_step_over_161_tiny_tensors(benchmark: BenchmarkFixture) -> None:
    benchmark(steps.masked_sgd(make_inputs(INPUTS["tiny"], "cpu")).run)


def test_select(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    benchmark(selections.select(inputs).run)


def test_prune(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    task = prunes.prune(inputs)
    benchmark.pedantic(task.run, setup=task.prepare, rounds=50, warmup_rounds=2)


def test_pack_mask(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    benchmark(pack_mask, inputs.masks)


def test_unpack_mask(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    packed = pack_mask(inputs.masks)
    benchmark(unpack_mask, packed, inputs.targets)


def test_set_masks(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    optimizer = MaskedSGD(inputs.params, lr=0.1, momentum=0.9)
    optimizer.prune(SPARSITY)
    benchmark(optimizer.set_masks, dict(zip(inputs.targets, inputs.masks, strict=True)))
