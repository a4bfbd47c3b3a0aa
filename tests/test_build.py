"""setup.py: builds what was asked for or fails and says why; `auto` says what it chose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dsd_kernels

ROOT = Path(dsd_kernels.__file__).parents[1]


def setup(**environment):
    """`--version` runs all of setup.py without building anything."""
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--version"],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_is_the_packages():
    result = setup(DSD_BUILD="python")
    assert result.stdout.split()[-1] == dsd_kernels.__version__, result.stderr


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"DSD_BUILD": "fast"}, "DSD_BUILD: expected one of python, cpu, cuda, auto, got 'fast'"),
        ({"DSD_BUILD": "cpu", "CXX": "no-such-compiler"}, "DSD_BUILD=cpu: no C++ compiler ('no-such-compiler'"),
        ({"DSD_BUILD": "cuda"}, "DSD_BUILD=cuda: this version has no CUDA C++ kernels, Triton serves CUDA"),
    ],
    ids=["unknown", "no compiler", "no CUDA kernels"],
)
def test_what_was_asked_for_and_cannot_be_built_is_an_error(environment, text):
    result = setup(**environment)
    assert result.returncode != 0
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_auto_without_a_compiler_is_pure_python_and_says_so():
    result = setup(DSD_BUILD="auto", CXX="no-such-compiler")
    assert result.returncode == 0
    assert "building pure Python: no C++ compiler ('no-such-compiler' was not found)" in result.stderr
