"""Masks in a safetensors file: bool tensors by parameter name, readable by everything that reads safetensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dsd_kernels.files import replace_file
from dsd_kernels.optim import MaskedSGD

try:
    import safetensors
    import safetensors.torch
except ImportError as error:
    raise ImportError("dsd_kernels.integrations.safetensors needs safetensors: pip install safetensors") from error

FORMAT = "dsd_kernels.masks"
VERSION = "1"


def save_masks(optimizer: MaskedSGD, model: nn.Module | Mapping[str, Tensor], path: str | Path) -> None:
    """Write the masks of an optimizer to a safetensors file.

    Args:
        optimizer: a `MaskedSGD` with masks.
        model: the module whose parameters they are, or {name: parameter}: gives each mask its name.
        path: the file. It is replaced as a whole: a kill leaves the one before or this one.

    Raises:
        ValueError: an optimizer without masks; a masked parameter without a name. Nothing is written then.

    Notes:
        The metadata are format, version, sparsity (of the masked parameters) and a SHA-256 of the masks.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.integrations.safetensors import load_masks, save_masks
        >>> layer = torch.nn.Linear(4, 2)
        >>> optimizer = MaskedSGD(layer.parameters(), lr=0.1)
        >>> optimizer.prune(0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_masks(optimizer, layer, f"{folder}/masks.safetensors")
        ...     optimizer.densify()
        ...     load_masks(optimizer, layer, f"{folder}/masks.safetensors")
        >>> optimizer.sparsity().per_parameter[layer.weight]
        0.5
    """
    masks = optimizer.masks
    names = {p: name for name, p in _named(model).items()}  # one for each parameter that has several
    if not masks:
        raise ValueError("optimizer: expected one with masks, there is none")
    n_nameless = len(masks.keys() - names.keys())
    if n_nameless:
        raise ValueError(f"model: expected a name for every masked parameter, {n_nameless} of {len(masks)} have none")
    tensors = {names[p]: mask.cpu().contiguous() for p, mask in masks.items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "sparsity": repr(optimizer.sparsity().masked),
        "sha256": _digest(tensors),
    }
    replace_file(Path(path), safetensors.torch.save(tensors, metadata))


def load_masks(optimizer: MaskedSGD, model: nn.Module | Mapping[str, Tensor], path: str | Path) -> None:
    """Set the masks that `save_masks` wrote; pruned weights become +0 at once, as in `MaskedSGD.set_masks`.

    Args:
        optimizer: a `MaskedSGD` over the parameters that the file has masks for.
        model: the module whose parameters they are, or {name: parameter}.
        path: the file.

    Raises:
        OSError: no file that can be read.
        ValueError: not a file of `save_masks`, damaged, or of another version; a mask for a parameter that the model
            or the optimizer does not have, or of another shape; no mask for a parameter that is masked now. Nothing has
            changed then.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.integrations.safetensors import load_masks, save_masks
        >>> ours, theirs = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        >>> optimizer = MaskedSGD(ours.parameters(), lr=0.1)
        >>> optimizer.prune(0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_masks(optimizer, ours, f"{folder}/masks.safetensors")
        ...     load_masks(MaskedSGD(theirs.parameters(), lr=0.1), theirs, f"{folder}/masks.safetensors")
        >>> torch.equal(theirs.weight != 0, ours.weight != 0)
        True
    """
    named = _named(model)
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    masks = {}
    for name, mask in _read(Path(path)).items():
        if name not in named or named[name] not in owned:
            raise ValueError(f"{path}: expected parameters of the model and the optimizer, got a mask of {name!r}")
        if mask.shape != named[name].shape:
            expected = tuple(named[name].shape)
            raise ValueError(f"{path}: mask of {name!r}: expected shape {expected}, got {tuple(mask.shape)}")
        masks[named[name]] = mask.to(named[name].device)
    missing = optimizer.masks.keys() - masks.keys()
    if missing:
        which = ", ".join(name for name, p in named.items() if p in missing) or "some of another model"
        raise ValueError(f"{path}: expected a mask of every masked parameter, none for {which}; densify() first")
    optimizer.set_masks(masks)


def _named(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(model.named_parameters() if isinstance(model, nn.Module) else model)


def _read(path: Path) -> dict[str, Tensor]:
    """The masks of a file, after every check that needs the file alone."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file ({error})") from error
    for key, expected in (("format", FORMAT), ("version", VERSION)):
        if metadata.get(key) != expected:
            raise ValueError(f"{path}: expected masks of {key} {expected!r}, got {metadata.get(key)!r}")
    if any(mask.dtype != torch.bool for mask in tensors.values()) or metadata.get("sha256") != _digest(tensors):
        raise ValueError(f"{path}: damaged: its masks do not have the SHA-256 that is recorded with them")
    return tensors


def _digest(masks: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(f"{name} {tuple(masks[name].shape)}".encode())
        digest.update(masks[name].view(torch.uint8).numpy().data)
    return digest.hexdigest()
