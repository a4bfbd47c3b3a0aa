"""Builds the compiled backend, `dsd_kernels._C`, where that is asked for or possible.

DSD_BUILD=python  pure Python: every op runs on the reference (and on Triton, on a GPU)
DSD_BUILD=cpu     C++ kernels for the CPU; fails if they cannot be built
DSD_BUILD=cuda    CUDA C++ kernels too; fails if they cannot be built
DSD_BUILD=auto    the default: C++ kernels if torch and a compiler are found (fails if they do not build), otherwise
                  pure Python; it says which
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CHOICES = ("python", "cpu", "cuda", "auto")
COMPILE_ARGS = [
    "-O3",
    "-std=c++20",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # fused multiply-adds are written where they are meant
    "-fno-math-errno",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # the stable ABI of torch 2.11: one build serves later versions too
]


def why_no_cpu_build() -> str:
    """Why the C++ kernels cannot be built here; empty if they can."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        return f"no C++ compiler ({compiler!r} was not found)"
    try:
        import torch.utils.cpp_extension  # noqa: F401  torch is needed to build, never required: see pyproject.toml
    except ImportError:
        return "torch is not installed where the build runs; install torch first and add --no-build-isolation"
    return ""


def chosen_build() -> str:
    choice = os.environ.get("DSD_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"DSD_BUILD: expected one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "cuda" and not list(Path("csrc/cuda").glob("*.cu")):
        sys.exit("DSD_BUILD=cuda: this version has no CUDA C++ kernels, Triton serves CUDA; use DSD_BUILD=cpu")
    if choice == "python":
        return choice
    reason = why_no_cpu_build()
    if reason and choice != "auto":
        sys.exit(f"DSD_BUILD={choice}: {reason}")
    print(
        f"dsd_kernels: building {'pure Python: ' + reason if reason else 'the C++ kernels for the CPU'}",
        file=sys.stderr,
    )
    return "python" if reason else "cpu"


class BuildExtension(build_ext):
    """Builds from scratch each time: a left-over object file would ship a stale kernel."""

    def run(self) -> None:
        self.force = True
        super().run()


def extensions(build: str) -> list[Extension]:
    if build == "python":
        return []
    from torch.utils.cpp_extension import include_paths, library_paths

    return [
        Extension(
            "dsd_kernels._C",
            sources=["csrc/registration.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))],
            depends=sorted(map(str, Path("csrc").rglob("*.h"))),
            include_dirs=include_paths(),
            library_dirs=library_paths(),
            libraries=["torch", "torch_cpu", "c10"],
            extra_compile_args=COMPILE_ARGS,
            language="c++",
            py_limited_api=True,
        )
    ]


def packages() -> list[str]:
    """benchmarks/ is dsd_kernels.benchmarks in a wheel: at the top of site-packages its name would be anyone's."""
    benchmarks = ["benchmarks", *(f"benchmarks.{name}" for name in find_packages("benchmarks"))]
    return [*find_packages(include=["dsd_kernels*"]), *(f"dsd_kernels.{name}" for name in benchmarks)]


setup(
    packages=packages(),
    package_dir={"dsd_kernels.benchmarks": "benchmarks"},
    ext_modules=extensions(chosen_build()),
    cmdclass={"build_ext": BuildExtension},
)
