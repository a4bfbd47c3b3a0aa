"""`dsd-kernels bench`: the benchmark of benchmarks/, wherever it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_cases import assert_one_line, invoke

from dsd_kernels.cli import bench

ROOT = Path(__file__).parents[1]


def test_it_measures(tmp_path):
    result = invoke("bench", "--inputs", "tiny", "--cases", "select", "--seconds", "0", "--output", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.json").exists()


def test_its_help_is_the_benchmarks_own():
    result = invoke("bench", "--help")
    assert result.exit_code == 0
    assert result.output.startswith("usage: dsd-kernels bench")
    assert "--model MODULE:CALLABLE" in result.output


@pytest.mark.parametrize("arguments", [["--sparsity", "2"], ["stray"], ["--no-such-option"], ["--model", "x"]])
def test_bad_input_is_one_line(arguments):
    assert_one_line(invoke("bench", *arguments), arguments[-1])


def test_torch_is_loaded_after_the_environment_is_set(tmp_path):
    """Otherwise the machine line would name a wait policy that torch has never read."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-m", "dsd_kernels", "bench", "--inputs", "tiny", "--cases", "select", "--seconds", "0"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "OMP_WAIT_POLICY=passive" in result.stdout
    importing = [sys.executable, "-c", "import torch, os, benchmarks; print(os.environ.get('OMP_WAIT_POLICY'))"]
    late = subprocess.run(importing, env=environment, capture_output=True, text=True, check=False)
    assert late.stdout.strip() == "None", late.stderr


def test_the_exit_code_is_the_benchmarks(monkeypatch):
    class Red:
        @staticmethod
        def main(arguments, program):
            assert (arguments, program) == (("--full",), "dsd-kernels bench")
            return 1

    monkeypatch.setattr(bench, "load", lambda: Red)
    assert invoke("bench", "--full").exit_code == 1


def test_a_copy_without_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(bench, "find_spec", lambda _: None)
    with pytest.raises(click.ClickException, match="install the wheel, or run in a checkout"):
        bench.load()
    assert_one_line(invoke("bench"), "this copy came without benchmarks/")


def test_a_wheel_carries_it_and_it_runs_there(tmp_path):
    """As dsd_kernels.benchmarks, without the micro-benchmarks, which need pytest."""
    build = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path, "build_py", "--build-lib"]
    environment = {**os.environ, "DSD_BUILD": "python", "DSD_KERNELS_BACKEND": "reference", "PYTHONPATH": ""}
    subprocess.run([*build, tmp_path / "lib"], cwd=ROOT, env=environment, capture_output=True, check=True)
    carried = tmp_path / "lib" / "dsd_kernels" / "benchmarks"
    assert (carried / "peers" / "__init__.py").exists()
    assert not list(carried.rglob("test_*"))
    command = [sys.executable, "-m", "dsd_kernels", "bench", "--inputs", "tiny", "--cases", "select", "--seconds", "0"]
    result = subprocess.run(command, cwd=tmp_path / "lib", env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "dsd_kernels.kth_magnitude" in result.stdout
