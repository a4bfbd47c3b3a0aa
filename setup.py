"""Builds the compiled backend, `dsd_kernels._C` and `dsd_kernels._C_cuda`, where that is asked for or possible.

DSD_BUILD=python  pure Python: every op runs on the reference (and on Triton, on a GPU)
DSD_BUILD=cpu     C++ kernels for the CPU; fails if they cannot be built
DSD_BUILD=cuda    CUDA C++ kernels too (nvcc 12.1 or later, by CUDA_HOME or PATH); fails if they cannot be built
DSD_BUILD=auto    the default: C++ kernels if torch and a compiler are found (fails if they do not build), otherwise
                  pure Python; it says which
"""

import os
import re
import shutil
import subprocess
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
NVCC_ARGS = ["-O3", "-std=c++20", "-fmad=false", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden"]
TOOLKIT = ("bin/nvcc", "include/cuda_runtime.h")
OLDEST_NVCC = (12, 1)  # the first that passes a kernel more than 4 KB of arguments
ARCHITECTURES = (80, 90, 100)  # those that nvcc knows are built, and PTX of the last for GPUs to come


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


def cuda_home() -> Path | None:
    """The toolkit's folder: CUDA_HOME if that is set, otherwise that of the nvcc on PATH, or the usual one."""
    nvcc = shutil.which("nvcc")
    on_path = [Path(nvcc).resolve().parents[1]] if nvcc else []
    asked = os.environ.get("CUDA_HOME")
    candidates = [Path(asked)] if asked else [*on_path, Path("/usr/local/cuda")]
    return next((home for home in candidates if all((home / part).exists() for part in TOOLKIT)), None)


def ask_nvcc(question: str) -> str:
    return subprocess.run([cuda_home() / "bin" / "nvcc", question], capture_output=True, text=True, check=True).stdout


def why_no_cuda_build() -> str:
    """Why the CUDA C++ kernels cannot be built here; empty if they can."""
    if cuda_home() is None:
        where = f"CUDA_HOME={os.environ.get('CUDA_HOME')}" if os.environ.get("CUDA_HOME") else "PATH or /usr/local/cuda"
        return f"no CUDA toolkit ({' and '.join(TOOLKIT)} were not found by {where})"
    release = re.search(r"release (\d+)\.(\d+)", ask_nvcc("--version"))
    found = tuple(map(int, release.groups())) if release else (0, 0)
    if found < OLDEST_NVCC:
        return "nvcc {}.{} is too old, expected {}.{} or later".format(*found, *OLDEST_NVCC)
    return ""


def chosen_build() -> str:
    choice = os.environ.get("DSD_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"DSD_BUILD: expected one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "python":
        return choice
    reason = why_no_cpu_build() or (why_no_cuda_build() if choice == "cuda" else "")
    if reason and choice != "auto":
        sys.exit(f"DSD_BUILD={choice}: {reason}")
    build = "python" if reason else "cpu" if choice == "auto" else choice
    what = {"python": f"pure Python: {reason}", "cpu": "the C++ kernels for the CPU"}
    what["cuda"] = f"the C++ kernels for the CPU, and CUDA C++ for {', '.join(architectures())}"
    print(f"dsd_kernels: building {what[build]}", file=sys.stderr)
    return build


def architectures() -> list[str]:
    known = ask_nvcc("--list-gpu-code").split()
    return [name for name in (f"sm_{number}" for number in ARCHITECTURES) if name in known]


class BuildExtension(build_ext):
    """Builds from scratch each time: a left-over object file would ship a stale kernel."""

    def run(self) -> None:
        self.force = True
        super().run()

    def build_extension(self, extension: Extension) -> None:
        """Compile CUDA sources by nvcc, which setuptools does not know; all else is setuptools' own."""
        kernels = [source for source in extension.sources if source.endswith(".cu")]
        if kernels:
            extension.sources = [source for source in extension.sources if source not in kernels]
            extension.extra_objects = [self.compile_kernel(source) for source in kernels]
            self.stand_in_for_torch_cuda(extension)
        super().build_extension(extension)

    def compile_kernel(self, source: str) -> str:
        target = Path(self.build_temp, source).with_suffix(".cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        names = [name.removeprefix("sm_") for name in architectures()]
        codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
        ptx = f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}"
        self.spawn([str(cuda_home() / "bin" / "nvcc"), *NVCC_ARGS, *codes, ptx, "-c", source, "-o", str(target)])
        return str(target)

    def stand_in_for_torch_cuda(self, extension: Extension) -> None:
        """A torch for the CPU lacks libtorch_cuda: link to an empty one of its name, and find the real one at load."""
        if any(Path(folder, "libtorch_cuda.so").exists() for folder in extension.library_dirs):
            return
        folder = Path(self.build_temp, "stand_in")
        folder.mkdir(parents=True, exist_ok=True)
        empty = ["-shared", "-Wl,-soname,libtorch_cuda.so", "-x", "c++", "/dev/null"]
        self.spawn([*os.environ.get("CXX", "g++").split(), *empty, "-o", str(folder / "libtorch_cuda.so")])
        extension.library_dirs.append(str(folder))


def extensions(build: str) -> list[Extension]:
    if build == "python":
        return []
    from torch.utils.cpp_extension import include_paths, library_paths

    def extension(name: str, sources: list[str], **options: list[str]) -> Extension:
        return Extension(
            f"dsd_kernels.{name}",
            sources=sources,
            depends=sorted(map(str, Path("csrc").rglob("*.h"))),
            include_dirs=include_paths() + options.get("include_dirs", []),
            library_dirs=library_paths() + options.get("library_dirs", []),
            libraries=["torch", "torch_cpu", "c10", *options.get("libraries", [])],
            extra_compile_args=COMPILE_ARGS + options.get("compile_args", []),
            extra_link_args=options.get("link_args", []),
            language="c++",
            py_limited_api=True,
        )

    built = [extension("_C", ["csrc/registration.cpp", *sources_in("csrc/cpu", "*.cpp")])]
    if build == "cuda":
        home = cuda_home()
        cuda = extension(
            "_C_cuda",
            ["csrc/cuda/registration.cpp", *sources_in("csrc/cuda/ops", "*.cpp"), *sources_in("csrc/cuda", "*.cu")],
            include_dirs=[str(home / "include")],
            library_dirs=[str(home / "lib64"), str(home / "lib")],
            # the runtime is linked in: torch's own may be another release of it
            libraries=["cudart_static", "rt", "dl", "pthread"],
            compile_args=["-DUSE_CUDA"],  # torch's headers declare what concerns CUDA then
            link_args=["-Wl,--no-as-needed", "-ltorch_cuda"],  # loaded with it, though its symbols are not seen here
        )
        built.append(cuda)
    return built


def sources_in(folder: str, pattern: str) -> list[str]:
    return sorted(map(str, Path(folder).glob(pattern)))


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
