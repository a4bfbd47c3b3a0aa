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

AVAILABLE = sorted((row.backend, row.device) for row in dsd_kernels.backends() if row.available)
TARGETS = [target for target in AVAILABLE if target != ("reference", "cuda")]  # the reference is torch's own ops

if ("triton", "cpu") in AVAILABLE:  # in the interpreter
    from exact_fma import install_exact_fma  # needs Triton

    install_exact_fma()


@pytest.fixture(params=TARGETS, ids=[name if device == "cpu" else f"{name}-{device}" for name, device in TARGETS])
def target(request):
    """A backend, and the device on which it is tested."""
    return request.param


@pytest.fixture
def backend(target, request):
    """Run the test once per available backend, inside its scope; test_backends.py fails where one is missing."""
    if target[1] == "cuda" and "device" not in request.fixturenames:
        pytest.skip("the test's tensors lie on the CPU")
    with dsd_kernels.use_backend(target[0]):
        yield target[0]


@pytest.fixture(params=[name for name, device in TARGETS if device == "cuda"])
def gpu_backend(request):
    """Run the test once per backend with kernels for the GPU, inside its scope; not at all without a GPU."""
    with dsd_kernels.use_backend(request.param):
        yield request.param


@pytest.fixture
def sizes(backend, device):
    """Sizes around vector widths and chunks; fewer where Triton is interpreted."""
    return INTERPRETER_SIZES if backend == "triton" and device == "cpu" else SIZES


@pytest.fixture
def device(target):
    """Where the backend is tested: Triton on the GPU if there is one, CUDA C++ there, all else on the CPU."""
    return target[1]
