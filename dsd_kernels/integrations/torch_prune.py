"""Exchange of masks with torch.nn.utils.prune, in both directions."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from dsd_kernels.optim import MaskedSGD


@torch.no_grad()
def import_masks(model: nn.Module) -> dict[Tensor, Tensor]:
    """Make the masks of torch.nn.utils.prune permanent, and return them for an optimizer.

    ``weight = select(weight_mask, weight_orig, +0)``, and the hook, `weight_orig` and `weight_mask` are gone

    Args:
        model: a module, of which some modules have been pruned by torch.nn.utils.prune; they are plain again after it.

    Returns:
        {parameter: bool mask of its shape, True = keep}, as `MaskedSGD.set_masks` takes it.

    Raises:
        ValueError: nothing is pruned; a mask of values other than 0 and 1; a parameter that two modules share but prune
            differently. Nothing has changed then.

    Notes:
        The parameter is the object that it was before torch.nn.utils.prune and under it, as `weight_orig`: an optimizer
        that owns it goes on owning it. It comes last among its module's parameters now, as torch leaves it, so make the
        optimizer after the import if its state is to be loaded by position.

    Source: torch.nn.utils.prune.remove.

    Example:
        >>> import torch
        >>> from torch.nn.utils import prune
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.integrations.torch_prune import import_masks
        >>> layer = prune.l1_unstructured(torch.nn.Linear(4, 2), "weight", amount=0.5)
        >>> masks = import_masks(layer)
        >>> optimizer = MaskedSGD(layer.parameters(), lr=0.1)
        >>> optimizer.set_masks(masks)
        >>> optimizer.sparsity().per_parameter[layer.weight]
        0.5
    """
    masks: dict[Tensor, Tensor] = {}
    pruned = list(_pruned(model))
    if not pruned:
        raise ValueError("model: expected one with modules pruned by torch.nn.utils.prune, there is none")
    for path, module, name in pruned:
        parameter, mask = getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask")
        keep = mask != 0
        if not torch.equal(keep.to(mask.dtype), mask):
            raise ValueError(f"model: expected a mask of zeros and ones, {path} has other values")
        if not torch.equal(masks.setdefault(parameter, keep), keep):
            raise ValueError(f"model: expected one mask per parameter, {path} shares its parameter but not its mask")
    for _, module, name in pruned:
        prune.remove(module, name)
    for parameter, keep in masks.items():
        parameter.masked_fill_(~keep, 0.0)  # remove() multiplies, which leaves -0 and NaN behind
    return masks


def export_masks(optimizer: MaskedSGD, model: nn.Module) -> None:
    """Give the masks of an optimizer to torch.nn.utils.prune, so that its tools see them.

    ``weight = weight_orig * weight_mask``, by a hook before each forward

    Args:
        optimizer: a `MaskedSGD` with masks; it goes on owning the parameters, which are named `weight_orig` then.
        model: the module whose parameters they are, wherever they occur in it.

    Raises:
        ValueError: an optimizer without masks; a masked parameter that is not the model's; one that is under
            torch.nn.utils.prune already. Nothing has changed then.

    Source: torch.nn.utils.prune.custom_from_mask.

    Example:
        >>> import torch
        >>> from torch.nn.utils import prune
        >>> from dsd_kernels import MaskedSGD
        >>> from dsd_kernels.integrations.torch_prune import export_masks
        >>> layer = torch.nn.Linear(4, 2)
        >>> optimizer = MaskedSGD(layer.parameters(), lr=0.1)
        >>> optimizer.prune(0.5)
        >>> export_masks(optimizer, layer)
        >>> prune.is_pruned(layer), int(layer.weight_mask.sum())
        (True, 4)
    """
    masks = optimizer.masks
    if not masks:
        raise ValueError("optimizer: expected one with masks, there is none")
    for path, _, _ in _pruned(model):
        raise ValueError(f"model: expected one without torch.nn.utils.prune, {path} is under it; import_masks() first")
    places = [
        (module, name, p)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
        if p in masks
    ]
    n_foreign = len(masks) - len({p for _, _, p in places})
    if n_foreign:
        raise ValueError(f"model: expected that of all masked parameters, {n_foreign} of {len(masks)} are not in it")
    for module, name, p in places:
        prune.custom_from_mask(module, name, masks[p])


def _pruned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The full name, module and own name of each parameter that torch.nn.utils.prune has replaced."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                name = hook._tensor_name
                yield f"{path}.{name}" if path else name, module, name
