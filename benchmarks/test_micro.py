"""Micro-benchmarks for pytest-benchmark, over a million weights: `python -m pytest benchmarks --benchmark-enable`."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import peers
from benchmarks.cases import INPUTS, Inputs, make_inputs


@pytest.fixture
def inputs() -> Inputs:
    return make_inputs(INPUTS["1e6"], "cpu")


def test_masked_step(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    benchmark(peers.masked_sgd(inputs).run)


def test_unmasked_step(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    benchmark(peers.unmasked_sgd(inputs).run)


def test_select(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    benchmark(peers.select(inputs).run)
