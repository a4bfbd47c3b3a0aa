"""MaskedSGD beside its oracle, torch.optim.SGD(foreach=False) followed by a selection with fixed masks."""

import pytest
import torch
from cases import bits_equal, generator
from torch import Tensor

from dsd_kernels import MaskedSGD

masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])


def parameters(*shapes):
    random = generator()
    return [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))


def batch(seed: int = 0) -> Tensor:
    return torch.randn(8, 10, generator=generator(seed))


def give_grads(params, seed: int) -> None:
    random = generator(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=random)


def take_steps(optimizer, params, n_steps: int = 4, seed: int = 0) -> None:
    for step in range(n_steps):
        give_grads(params, seed + step)
        optimizer.step()


def train_model(optimizer, model, n_steps: int = 4) -> None:
    for step in range(n_steps):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()


def some_masks(params):
    random = generator(1)
    return {p: torch.rand(p.shape, generator=random) > 0.4 for p in params}


def keep_masks(optimizer, masks):
    """Select now and after every step of torch's optimizer."""

    @torch.no_grad()
    def select(*_):
        for p, mask in masks.items():
            p.copy_(torch.where(mask, p, 0.0))
            buffer = optimizer.state[p].get("momentum_buffer") if p in optimizer.state else None
            if buffer is not None:
                buffer.copy_(torch.where(mask, buffer, 0.0))

    select()
    optimizer.register_step_post_hook(select)


def mask_some(optimizer, params=None):
    """Every second parameter gets a mask, the same one under both optimizers."""
    masks = some_masks((owned(optimizer) if params is None else params)[::2])
    if isinstance(optimizer, MaskedSGD):
        optimizer.set_masks(masks)
    else:
        keep_masks(optimizer, masks)


def side_by_side(train, make_params, masked=False, ours=None, **options):
    """Run `train(optimizer, params)` under both optimizers over equal parameters; the results must be equal bits.

    Args:
        make_params: called once for each optimizer; returns a model, or a list of parameters.
        ours: options for MaskedSGD only, such as foreach.
    """
    results = []
    for cls, own in ((MaskedSGD, ours or {}), (torch.optim.SGD, {"foreach": False})):
        made = make_params()
        params = made.parameters() if isinstance(made, torch.nn.Module) else made
        optimizer = cls(params, **{"lr": 0.1, **_own_copy(options), **own})
        if masked:
            mask_some(optimizer)
        train(optimizer, made)
        results.append(optimizer)
    assert_same_results(*results)
    return results[0]


def _own_copy(options):
    """A learning rate that is changed in place must not be shared."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in options.items()}


def owned(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def assert_same_results(ours, theirs):
    """Equal weights and momentum, to the bit, in every group; and masks that hold."""
    for p, q in zip(owned(ours), owned(theirs), strict=True):
        assert bits_equal(p.detach(), q.detach())
        a, b = (o.state[w].get("momentum_buffer") if w in o.state else None for o, w in ((ours, p), (theirs, q)))
        assert (a is None) == (b is None)
        assert a is None or bits_equal(a.detach(), b.detach())
    ours.verify()
