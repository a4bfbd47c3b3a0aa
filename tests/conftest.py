"""Backends under test, and the environment that must stand before torch and Triton are imported."""

import os
import signal
import warnings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads turn microseconds into milliseconds here

import pytest
import torch
from cases import INTERPRETER_SIZES, SIZES

pytest_plugins = ["compatibility", "pytester"]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined

with warnings.catch_warnings():
    if os.environ.get("DSD_BUILD") == "python":  # asked for, so its warning is no news; test_backends.py reads it
        warnings.simplefilter("ignore", RuntimeWarning)
    import dsd_kernels

AVAILABLE_BACKENDS = sorted({row.backend for row in dsd_kernels.backends() if row.available})

if "triton" in AVAILABLE_BACKENDS and os.environ.get("TRITON_INTERPRET") == "1":
    from exact_fma import install_exact_fma  # needs Triton

    install_exact_fma()


@pytest.fixture(params=AVAILABLE_BACKENDS)
def backend(request):
    """Run the test once per available backend, inside its scope; test_backends.py fails where one is missing."""
    with dsd_kernels.use_backend(request.param):
        yield request.param


@pytest.fixture
def sizes(backend, device):
    """Sizes around vector widths and chunks; fewer where Triton is interpreted."""
    return INTERPRETER_SIZES if backend == "triton" and device == "cpu" else SIZES


@pytest.fixture
def device(backend):
    """The device on which the backend is tested: Triton on the GPU where there is one, all else on the CPU."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
