"""Which code serves an op on which device: loads the extension, binds Triton, lets the user choose.

The dispatcher does the choosing: the reference stands under every device, and the extensions register themselves for
CPU and for CUDA when they are loaded. What serves in their place, Triton or what the user chose, is one layer over
these.
"""

import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

OPS = (
    "masked_sgd_",
    "planned_sgd_",
    "kth_magnitude",
    "global_counts",
    "magnitude_histogram",
    "prune_",
    "pack_mask",
    "unpack_mask",
)
BACKENDS = ("reference", "compiled", "triton")
ENVIRONMENT_VARIABLE = "DSD_KERNELS_BACKEND"
_DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
_EXTENSIONS = {"cpu": "_C", "cuda": "_C_cuda"}
# The first that is available serves by default. CUDA C++ comes after Triton until both have been measured on a GPU.
_PREFERENCES = {"cpu": ("compiled", "reference"), "cuda": ("triton", "compiled", "reference")}


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can serve a device, whether it does so now, and why (not)."""

    backend: str
    device: str
    available: bool
    active: bool
    reason: str


@dataclass(frozen=True, eq=False)
class _Choice:
    """One scope's choice; two scopes may choose the same backend, so each is itself only."""

    backend: str


_lock = threading.RLock()
_choices: list[_Choice] = []  # innermost scope last; empty means the default
_layer: torch.library.Library | None = None
_missing_extensions = dict.fromkeys(_DEVICES, "not loaded yet")


def bind() -> None:
    """Load and register all that is available, then apply the environment variable. Called once, by ops/__init__.py."""
    _missing_extensions["cpu"] = _load_extension("cpu")
    if torch.cuda.is_available():
        _missing_extensions["cuda"] = _load_extension("cuda")
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        _require(chosen)
        _choices.append(_Choice(chosen))
    _apply()
    if not chosen and _missing_extensions["cpu"]:
        warnings.warn(
            f"dsd_kernels runs its slow reference backend on the CPU: {_missing_extensions['cpu']} "
            f"Set {ENVIRONMENT_VARIABLE}=reference to choose it without this warning.",
            RuntimeWarning,
            stacklevel=3,
        )


def backends() -> list[BackendStatus]:
    """Every backend on every device: is it available, does it serve now, and why (not).

    Returns:
        One `BackendStatus` per (backend, device), in a fixed order.

    Example:
        >>> from dsd_kernels import backends
        >>> [row.available for row in backends() if (row.backend, row.device) == ("reference", "cpu")]
        [True]
    """
    rows = []
    for device in _DEVICES:
        why_not = {backend: _why_not(backend, device) for backend in BACKENDS}
        active = _choices[-1].backend if _choices else _default(device)
        for backend in BACKENDS:
            chosen = backend == active and not why_not[backend]
            reason = why_not[backend] or ("chosen" if chosen and _choices else "default" if chosen else "available")
            rows.append(BackendStatus(backend, device, not why_not[backend], chosen, reason))
    return rows


def has_kernel(op: str, device: str) -> bool:
    """Whether an op has an entry of its own for the device; where it has none, the reference stands under it."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"dsd_kernels::{op}", _DEVICES[device])


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every op by one backend inside the scope, for the whole process; scopes nest.

    Args:
        name: "reference", "compiled" or "triton".

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend is not available on any device here, and why; or, when an op is called, that it does
            not serve the device of the tensors. It never falls back to another backend in silence.

    Notes:
        The choice is made in PyTorch's dispatcher, so compiled graphs follow it too, and it holds for all threads:
        enter and leave the scope while no other thread is calling an op.

    Example:
        >>> import torch
        >>> from dsd_kernels import kth_magnitude, use_backend
        >>> with use_backend("reference"):
        ...     kth_magnitude([torch.tensor([-3.0, 0.5])], k=[2])
        tensor([3.])
    """
    _require(name)
    choice = _Choice(name)
    try:
        with _lock:
            _choices.append(choice)
            _apply()
        yield
    finally:
        with _lock:
            _choices.remove(choice)
            _apply()


def _require(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    reasons = {device: _why_not(name, device) for device in _DEVICES}
    if all(reasons.values()):
        details = "; ".join(f"{device}: {reason}" for device, reason in reasons.items())
        raise RuntimeError(f"backend {name!r} is not available here ({details})")


def _default(device: str) -> str:
    return next((backend for backend in _PREFERENCES[device] if not _why_not(backend, device)), "reference")


def _apply() -> None:
    """Lay what serves now over the extensions' own registration, in place of the layer before."""
    global _layer
    if _layer is not None:
        _layer._destroy()
    if _choices:
        _layer = _register({device: _implementation(_choices[-1].backend, device) for device in _DEVICES})
    else:
        _layer = _register({device: _triton_op for device in _DEVICES if _default(device) == "triton"})


def _implementation(name: str, device: str) -> Callable[[str], Callable[..., object]] | None:
    """How to get an op of a backend for a device; None where the extension has registered itself."""
    why_not = _why_not(name, device)
    if why_not:
        return lambda _op: _refusal(name, device, why_not)
    if name == "compiled":
        return None
    return _reference_op if name == "reference" else _triton_op


def _register(implementations: Mapping[str, Callable[[str], Callable[..., object]] | None]) -> torch.library.Library:
    library = torch.library.Library("dsd_kernels", "IMPL")
    with warnings.catch_warnings():
        # torch warns once that a kernel is overridden; overriding is the purpose here
        warnings.filterwarnings("ignore", "(?s).*verrid", UserWarning)
        for device, implementation in implementations.items():
            if implementation is not None:
                for op in OPS:
                    library.impl(op, implementation(op), _DEVICES[device], allow_override=True)
    return library


def _refusal(name: str, device: str, why_not: str) -> Callable[..., object]:
    def refuse(*_: object, **__: object) -> object:
        raise RuntimeError(f"backend {name!r} was chosen but does not serve {device} tensors: {why_not}")

    return refuse


def _reference_op(op: str) -> Callable[..., object]:
    return getattr(importlib.import_module("dsd_kernels.ops.reference"), op)


def _triton_op(op: str) -> Callable[..., object]:
    """Triton is imported at the first call: it takes long, and most imports of this package never need it."""

    def launch(*args: object, **kwargs: object) -> object:
        return getattr(importlib.import_module("dsd_kernels.ops.triton"), op)(*args, **kwargs)

    return launch


def _why_not(backend: str, device: str) -> str:
    """Why a backend cannot serve a device here; empty if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device." if torch.version.cuda else "torch is built without CUDA."
    if backend == "compiled":
        return _missing_extensions[device]
    if backend == "triton":
        return _why_no_triton(device)
    return ""


def _why_no_triton(device: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install dsd-kernels[triton])."
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device == "cpu" and not interpreted:
        return "Triton serves the CPU in its interpreter only; set TRITON_INTERPRET=1 before Python starts."
    if device == "cuda" and interpreted:
        return "TRITON_INTERPRET=1 is set: the interpreter cannot read the GPU's memory."
    return ""


def _load_extension(device: str) -> str:
    """Load a device's extension, which registers its kernels; returns why it could not, or an empty string."""
    candidates = sorted(Path(__file__).parents[1].glob(f"{_EXTENSIONS[device]}.*"))
    if not candidates and device == "cuda":
        return "no CUDA C++ kernels (the package was not built with DSD_BUILD=cuda)."
    if not candidates:
        return (
            "no compiled extension (the package was built with DSD_BUILD=python, or where no C++ compiler was found)."
        )
    try:
        torch.ops.load_library(str(candidates[0]))
    except (OSError, RuntimeError) as error:
        return f"{candidates[0].name} could not be loaded ({error.__cause__ or error})."
    return ""
