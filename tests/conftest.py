"""Backends under test, and the environment that must stand before torch and Triton are imported."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads turn microseconds into milliseconds here

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined

import dsd_kernels

AVAILABLE_BACKENDS = sorted({row.backend for row in dsd_kernels.backends() if row.available})


@pytest.fixture(params=AVAILABLE_BACKENDS)
def backend(request):
    """Run the test once per available backend, inside its scope; test_build.py fails where one is missing."""
    with dsd_kernels.use_backend(request.param):
        yield request.param


@pytest.fixture
def device(backend):
    """The device on which the backend is tested: Triton on the GPU where there is one, all else on the CPU."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
