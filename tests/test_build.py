"""setup.py: builds what was asked for or fails and says why; `auto` says what it chose."""

import os
import shutil
import subprocess
import sys
import tarfile
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
        ({"DSD_BUILD": "cuda", "CXX": "no-such-compiler"}, "DSD_BUILD=cuda: no C++ compiler ('no-such-compiler'"),
        (
            {"DSD_BUILD": "cuda", "CUDA_HOME": "/no/such/toolkit"},
            "DSD_BUILD=cuda: no CUDA toolkit (bin/nvcc and include/cuda_runtime.h were not found by CUDA_HOME=/no/such",
        ),
    ],
    ids=["unknown", "no compiler", "no compiler for the rest of CUDA", "no CUDA toolkit"],
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


def toolkit(folder, release):
    """A CUDA toolkit that says it is of some release, and knows two architectures."""
    for name in ("bin", "include"):
        (folder / name).mkdir()
    (folder / "include" / "cuda_runtime.h").touch()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(
        f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\necho sm_80\necho sm_90\n"
    )
    nvcc.chmod(0o755)
    return str(folder)


def test_a_toolkit_that_is_too_old_is_an_error(tmp_path):
    result = setup(DSD_BUILD="cuda", CUDA_HOME=toolkit(tmp_path, "12.0"))
    assert result.returncode != 0
    assert "DSD_BUILD=cuda: nvcc 12.0 is too old, expected 12.1 or later" in result.stderr


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_the_cuda_build_says_for_which_gpus_it_is(tmp_path):
    result = setup(DSD_BUILD="cuda", CUDA_HOME=toolkit(tmp_path, "12.1"))
    assert "building the C++ kernels for the CPU, and CUDA C++ for sm_80, sm_90\n" in result.stderr, result.stderr


def test_a_source_distribution_has_every_kernel(tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path, "sdist", "-d", tmp_path]
    environment = {**os.environ, "DSD_BUILD": "python"}
    subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert any(name.endswith(".cu") for name in sources)
    assert sources <= packed
