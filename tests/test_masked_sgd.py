"""P2, P6: one formula on every backend; a pruned weight is +0.0 whatever its gradient; nothing else is touched."""

import pytest
import torch
from cases import DTYPES, OPTIONS, awkward, bits_equal, normal, option_id

from dsd_kernels import masked_sgd_, pack_mask, prune_, unpack_mask, use_backend


def same(a, b):
    """Equal to the bit, except that a NaN may be any NaN: the payload of a half-precision NaN is the converter's."""
    assert torch.equal(a.isnan(), b.isnan())
    assert bits_equal(a.nan_to_num(0.0), b.nan_to_num(0.0))


def inputs(dtype, device, sizes):
    params = [normal(n, dtype, seed=n).to(device) for n in sizes]
    grads = [awkward(n, dtype, seed=n + 1).to(device) for n in sizes]
    buffers = [normal(n, dtype, seed=n + 2).to(device) for n in sizes]
    masks = [torch.rand(n, generator=torch.Generator().manual_seed(n)) > 0.5 for n in sizes]
    return params, grads, buffers, [m.to(device) for m in masks]


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_reference_bitwise(backend, device, sizes, dtype, options, masked):
    params, grads, buffers, masks = inputs(dtype, device, sizes)
    results = []
    for name in ("reference", backend):
        p, m = [t.clone() for t in params], [t.clone() for t in buffers]
        with use_backend(name):
            packed = pack_mask(masks) if masked else []
            masked_sgd_(p, grads, m if options["momentum"] else [], packed, lr=0.1, **options)
        results.append((p, m))
    for reference, ours in zip(*results, strict=True):
        for a, b in zip(reference, ours, strict=True):
            same(a, b)


@pytest.mark.parametrize("mask_momentum", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_is_a_selection_after_the_step(backend, device, sizes, dtype, mask_momentum):
    params, grads, buffers, masks = inputs(dtype, device, sizes)
    p, m = [t.clone() for t in params], [t.clone() for t in buffers]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    masked_sgd_(params, grads, buffers, pack_mask(masks), mask_momentum=mask_momentum, **options)
    masked_sgd_(p, grads, m, **options)
    for i, mask in enumerate(masks):
        same(params[i], torch.where(mask, p[i], 0.0))
        same(buffers[i], torch.where(mask, m[i], 0.0) if mask_momentum else m[i])


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_pruned_weight_never_leaves_positive_zero(backend, device, nesterov):
    """1,000 steps with momentum and weight decay, and NaN and Inf gradients on pruned positions."""
    n = 130
    weight, buffer = normal(n, torch.float32).to(device), torch.zeros(n, device=device)
    packed = prune_([weight], [buffer], k=[65])
    keep = unpack_mask(packed, [weight])[0]
    gradients = normal(10 * n, torch.float32, seed=1).view(10, n).to(device)
    gradients[1::3] = torch.where(keep, gradients[1::3], torch.nan)
    gradients[2::3] = torch.where(keep, gradients[2::3], -torch.inf)
    steps = 1000 if backend != "triton" or device == "cuda" else 30  # the interpreter is slow; each step is alike
    for step in range(steps):
        masked_sgd_(
            [weight],
            [gradients[step % 10]],
            [buffer],
            packed,
            lr=0.1,
            momentum=0.9,
            weight_decay=1e-3,
            nesterov=nesterov,
        )
        assert not weight.view(torch.int32)[~keep].any()
        assert not buffer.view(torch.int32)[~keep].any()
    assert weight.isfinite().all()
    assert (weight[keep] != 0).any()


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "offset_view"])
def test_views_are_updated_in_place_and_nothing_around_them(backend, device, layout):
    shapes = {
        "transposed": lambda t: t[3:-7].view(20, 21).t(),
        "channels_last": lambda t: t[3:-7].view(4, 5, 7, 3).permute(0, 3, 1, 2),
        "offset_view": lambda t: t[3:-7],
    }
    storages = [normal(430, torch.float32, seed=i).to(device) for i in range(3)]
    before = [s.clone() for s in storages]
    param, grad, buffer = (shapes[layout](s) for s in storages)
    expected = param.contiguous(), grad.contiguous(), buffer.contiguous()

    masked_sgd_(
        [param], [grad.contiguous()], [buffer], lr=0.1, momentum=0.9
    )  # gradient strides differ from the parameter's
    masked_sgd_([expected[0]], [expected[1]], [expected[2]], lr=0.1, momentum=0.9)

    assert bits_equal(param, expected[0])
    assert bits_equal(buffer, expected[2])
    for storage, original in zip(storages, before, strict=True):
        assert bits_equal(storage[:3], original[:3])
        assert bits_equal(storage[-7:], original[-7:])
    assert bits_equal(storages[1], before[1])  # gradients are never written


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_learning_rate_as_a_tensor_is_the_learning_rate(backend, device, dtype):
    params, grads, _, _ = inputs(dtype, device, (65,))
    for lr in (torch.tensor(0.1), torch.tensor([0.1]), torch.tensor(0.1, dtype=torch.float64)):
        p, q = params[0].clone(), params[0].clone()
        masked_sgd_([p], grads, lr=lr.to(device))
        masked_sgd_([q], grads, lr=lr.item())
        same(p, q)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grad_scale_divides_and_found_inf_skips(backend, device, dtype):
    params, grads, buffers, masks = inputs(dtype, device, (65, 7))
    scale, zero, two = (torch.tensor(v, device=device) for v in (8.0, 0.0, 2.0))
    p, m = [t.clone() for t in params], [t.clone() for t in buffers]
    masked_sgd_(p, grads, m, pack_mask(masks), lr=0.1, momentum=0.9, grad_scale=scale, found_inf=two)
    for after, before in zip([*p, *m], [*params, *buffers], strict=True):
        assert bits_equal(after, before)

    masked_sgd_(p, [g * 8 for g in grads], m, lr=0.1, momentum=0.9, grad_scale=scale, found_inf=zero)
    q, n = [t.clone() for t in params], [t.clone() for t in buffers]
    masked_sgd_(q, [g * 8 / 8 for g in grads], n, lr=0.1, momentum=0.9)
    for a, b in zip([*p, *m], [*q, *n], strict=True):
        same(a, b)


def test_version_counters_are_bumped():
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * weight).sum()
    masked_sgd_([weight.detach()], [torch.ones(3)], lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_empty_lists_are_a_step_that_does_nothing(backend):
    masked_sgd_([], [], lr=0.1)
    assert prune_([], k=[]) == []
    assert pack_mask([]) == []
