"""P8: it works without a compiler and without a GPU, says what serves it and why, and never falls back in silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dsd_kernels
from dsd_kernels import backends, kth_magnitude, use_backend
from dsd_kernels.ops import backends as ops_backends

ROOT = Path(dsd_kernels.__file__).parents[1]


def python(code, **environment):
    environment = {**os.environ, "TRITON_INTERPRET": "0", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def status(backend, device="cpu"):
    return next(row for row in backends() if (row.backend, row.device) == (backend, device))


def test_the_reference_is_always_there():
    assert status("reference").available


@pytest.mark.skipif(os.environ.get("DSD_BUILD") == "python", reason="built without the extension on purpose")
def test_the_extension_is_built_and_serves_by_default():
    assert status("compiled").reason == "default"


def test_triton_is_under_test():
    assert status("triton", "cuda" if torch.cuda.is_available() else "cpu").available


@pytest.mark.parametrize(
    ("missing", "expected"),
    [((), "triton"), (("triton",), "compiled"), (("triton", "compiled"), "reference")],
    ids=["all", "no Triton", "neither"],
)
def test_on_cuda_the_default_is_triton_then_the_compiled_kernels_then_the_reference(monkeypatch, missing, expected):
    monkeypatch.setattr(ops_backends, "_why_not", lambda backend, device: "missing" if backend in missing else "")
    rows = [row for row in backends() if row.device == "cuda"]
    assert [row.backend for row in rows if row.active] == [expected]
    assert [row.reason for row in rows if row.active] == ["default"]


def test_without_a_gpu_no_backend_serves_it_and_each_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = "no CUDA device." if torch.version.cuda else "torch is built without CUDA."
    assert {row.reason for row in backends() if row.device == "cuda"} == {reason}


def test_a_cuda_extension_that_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    package = tmp_path / "dsd_kernels" / "ops"
    package.mkdir(parents=True)
    monkeypatch.setattr(ops_backends, "__file__", str(package / "backends.py"))
    assert ops_backends._load_extension("cuda") == (
        "no CUDA C++ kernels (the package was not built with DSD_BUILD=cuda)."
    )
    (package.parent / "_C_cuda.abi3.so").write_bytes(b"not a library")
    assert ops_backends._load_extension("cuda").startswith("_C_cuda.abi3.so could not be loaded (")


def fail_within(backend):
    with use_backend(backend):
        assert status(backend).active
        raise ZeroDivisionError


def test_scopes_nest_and_end_even_on_errors():
    default = [row.active for row in backends()]
    with use_backend("reference"):
        assert status("reference").reason == "chosen"
        with pytest.raises(ZeroDivisionError):
            fail_within("triton")
        assert status("reference").active
        assert kth_magnitude([torch.tensor([2.0])], [1]).item() == 2.0
    assert [row.active for row in backends()] == default


def test_leaving_an_inner_scope_restores_the_outer_one_even_if_both_chose_alike():
    with use_backend("reference"), use_backend("triton"):
        with use_backend("reference"):
            assert status("reference").active
        assert status("triton").active


def test_a_scope_really_changes_what_serves(monkeypatch):
    from dsd_kernels.ops import reference

    called = []
    monkeypatch.setattr(reference, "kth_magnitude", lambda tensors, k: called.append(1) or torch.zeros(1))
    with use_backend("reference"):
        kth_magnitude([torch.ones(2)], [1])
    kth_magnitude([torch.ones(2)], [1])
    assert called == [1] if status("compiled").available else [1, 1]


def test_unknown_and_absent_backends():
    with (
        pytest.raises(ValueError, match="backend: expected one of reference, compiled, triton, got 'cudnn'"),
        use_backend("cudnn"),
    ):
        pass
    absent = python("import dsd_kernels\nwith dsd_kernels.use_backend('triton'): pass")
    assert "RuntimeError: backend 'triton' is not available here" in absent.stderr
    assert "set TRITON_INTERPRET=1" in absent.stderr


@pytest.mark.parametrize("name", ["reference", "compiled"])
def test_the_environment_variable_chooses_at_import(name):
    if not status(name).available:
        pytest.skip(f"{name}: {status(name).reason}")
    result = python(
        "import dsd_kernels; print([r.backend for r in dsd_kernels.backends() if r.active and r.device == 'cpu'])",
        DSD_KERNELS_BACKEND=name,
    )
    assert result.stdout.strip() == f"['{name}']", result.stderr


def test_a_bad_environment_variable_is_an_error():
    result = python("import dsd_kernels", DSD_KERNELS_BACKEND="fast")
    assert "ValueError: backend: expected one of reference, compiled, triton, got 'fast'" in result.stderr


@pytest.mark.parametrize("isa", ["plain", "avx2"])
def test_every_instruction_set_gives_the_same_bits(isa):
    """The kernels for other machines than this one: the tests of the ops, run again with a lower limit."""
    if not status("compiled").available:
        pytest.skip(f"compiled: {status('compiled').reason}")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "compiled", "-p", "no:cacheprovider"]
        + [
            str(ROOT / "tests" / f"test_{name}.py")
            for name in (
                "masked_sgd",
                "masked_sgd_mixed",
                "masked_sgd_rounding",
                "selection",
                "selection_large",
                "pack_mask",
            )
        ],
        env={**os.environ, "DSD_KERNELS_ISA": isa},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_without_the_extension_one_warning_says_so(tmp_path):
    import shutil

    shutil.copytree(
        ROOT / "dsd_kernels", tmp_path / "dsd_kernels", ignore=shutil.ignore_patterns("_C.*", "__pycache__")
    )
    code = "import dsd_kernels, torch; print(dsd_kernels.kth_magnitude([torch.tensor([3., 1.])], [1]).item())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith(("DSD_", "PYTHONPATH"))},
    )
    assert result.stdout.strip() == "1.0", result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    assert "slow reference backend on the CPU: no compiled extension" in result.stderr


def test_a_broken_extension_is_named(tmp_path):
    import shutil

    shutil.copytree(
        ROOT / "dsd_kernels", tmp_path / "dsd_kernels", ignore=shutil.ignore_patterns("_C.*", "__pycache__")
    )
    (tmp_path / "dsd_kernels" / "_C.abi3.so").write_bytes(b"not a library")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import dsd_kernels\nwith dsd_kernels.use_backend('compiled'): pass"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith(("DSD_", "PYTHONPATH"))},
    )
    assert (
        "RuntimeError: backend 'compiled' is not available here (cpu: _C.abi3.so could not be loaded" in result.stderr
    )
