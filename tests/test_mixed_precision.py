"""GradScaler's two ways, autocast, clipping and accumulation: to the bit as torch.optim.SGD, masks as they were.

Without `fused` the scaler divides the gradients and calls `step` only where they are finite. With fused=True it always
calls `step`, and the kernel reads the scale and the overflow flag. The oracle is torch.optim.SGD on the first way.
"""

import copy

import pytest
import torch
from cases import normal
from state_cases import loss_of, mlp, params_of, snapshot

from dsd_kernels import MaskedSGD

WAYS = {"unscaled by the scaler": None, "unscaled by the kernel": True}
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
SIZES = (65, 8)


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def fused(request):
    return request.param


def parameters(device="cpu"):
    return [torch.nn.Parameter(normal(n, torch.float32, seed=n).to(device)) for n in SIZES]


def step_scaled(optimizer, scaler, seed, overflow=False):
    """One step with the gradients that a scaled loss would give."""
    for p in params_of(optimizer):
        p.grad = normal(p.numel(), p.dtype, seed=seed).to(p.device) * scaler.scale(torch.ones(1, device=p.device))
    if overflow:
        params_of(optimizer)[-1].grad[3] = torch.inf
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.feature("Mixed precision", "GradScaler, gradients unscaled by the scaler")
@pytest.mark.feature("Mixed precision", "GradScaler with fused=True, unscaled in the kernel")
@pytest.mark.parametrize("mask_momentum", ["zero", "keep"])
def test_a_skipped_step_changes_no_bit(backend, device, fused, mask_momentum):
    optimizer = MaskedSGD(parameters(device), fused=fused, mask_momentum=mask_momentum, **OPTIONS)
    scaler = torch.amp.GradScaler(device, init_scale=8.0)
    step_scaled(optimizer, scaler, seed=0)
    optimizer.prune(0.5, params_of(optimizer))
    step_scaled(optimizer, scaler, seed=1)
    before = snapshot(optimizer)
    step_scaled(optimizer, scaler, seed=2, overflow=True)
    assert snapshot(optimizer) == before
    assert scaler.get_scale() == 4.0
    step_scaled(optimizer, scaler, seed=2)
    assert snapshot(optimizer) != before


@pytest.mark.feature("Mixed precision", "an overflow in the very first step")
@pytest.mark.parametrize("continued_by", [MaskedSGD, torch.optim.SGD])
@pytest.mark.parametrize("dampening", [0, 0.3])
def test_a_first_step_that_is_skipped_leaves_no_half_made_state(fused, dampening, continued_by):
    """The run, here and after a trip into either optimizer, is that which never saw the overflow."""
    options = {"lr": 0.1, "momentum": 0.9, "dampening": dampening, "foreach": False}
    runs = []
    for overflow in (True, False):
        optimizer = MaskedSGD(parameters(), **options | {"fused": fused, "foreach": None})
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        if overflow:
            step_scaled(optimizer, scaler, seed=0, overflow=True)
        follower = continued_by(params_of(optimizer), **options)
        follower.load_state_dict(optimizer.state_dict() | {"param_groups": follower.state_dict()["param_groups"]})
        for seed in (1, 2):
            step_scaled(follower, torch.amp.GradScaler("cpu", init_scale=8.0), seed=seed)
        runs.append(snapshot(follower))
    assert runs[0] == runs[1]


@pytest.mark.feature("Mixed precision", "GradScaler's growth and backoff over many steps")
@pytest.mark.parametrize("init_scale", [8.0, 3.0])  # 1 / 3 is not exact
def test_growth_and_backoff_are_bitwise_torch(fused, init_scale):
    runs = []
    for cls, options in ((MaskedSGD, {"fused": fused}), (torch.optim.SGD, {"foreach": False})):
        optimizer = cls(parameters(), **OPTIONS, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=2)
        scales = []
        for step in range(9):
            step_scaled(optimizer, scaler, seed=step, overflow=step in (0, 5))
            scales.append(scaler.get_scale() / init_scale)
        runs.append((snapshot(optimizer), scales))
    assert runs[0] == runs[1]
    assert runs[0][1] == [0.5, 0.5, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 2.0]


@pytest.mark.feature("Mixed precision", "an overflow flag summed over devices")
@pytest.mark.parametrize("flag", [1.0, 2.0, float("nan")])
def test_any_overflow_flag_but_zero_skips(backend, device, flag):
    """GradScaler adds up the flags of its devices; torch.optim.SGD(fused=True) steps at 2."""
    optimizer = MaskedSGD(parameters(device), fused=True, **OPTIONS)
    optimizer.prune(0.5, params_of(optimizer))
    optimizer.grad_scale = torch.full((), 4.0, device=device)
    for found_inf, seed in ((0.0, 0), (flag, 1)):
        before = snapshot(optimizer)
        optimizer.found_inf = torch.full((), found_inf, device=device)
        for p in params_of(optimizer):
            p.grad = normal(p.numel(), p.dtype, seed=seed).to(device)
        optimizer.step()
        assert (snapshot(optimizer) == before) == (found_inf != 0)


@pytest.mark.feature("Mixed precision", "unscale_, then gradient clipping, then step")
def test_clipping_between_unscaling_and_step_is_bitwise_torch(fused):
    runs = []
    for cls, options in ((MaskedSGD, {"fused": fused}), (torch.optim.SGD, {"foreach": False})):
        model = mlp()
        optimizer = cls(model.parameters(), **OPTIONS, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        norms = []
        for step in range(5):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            if step == 1:
                model[0].weight.grad[0, 0] = torch.nan
            scaler.unscale_(optimizer)
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05).item())
            scaler.step(optimizer)
            scaler.update()
        runs.append((snapshot(optimizer), str(norms)))
        assert min(norms) > 0.05  # else nothing was clipped
    assert runs[0] == runs[1]


@pytest.mark.feature("Mixed precision", "the scaler's own state resumed")
def test_a_resumed_scaler_goes_on_as_if_never_stopped(fused):
    def build():
        optimizer = MaskedSGD(parameters(), fused=fused, **OPTIONS)
        return optimizer, torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)

    def run(optimizer, scaler, steps):
        for step in steps:
            step_scaled(optimizer, scaler, seed=step, overflow=step in (0, 4))

    optimizer, scaler = build()
    run(optimizer, scaler, range(2))
    optimizer.prune(0.5, params_of(optimizer))
    state = copy.deepcopy((optimizer.state_dict(), scaler.state_dict()))
    weights = [p.detach().clone() for p in params_of(optimizer)]
    run(optimizer, scaler, range(2, 9))

    resumed, resumed_scaler = build()
    with torch.no_grad():
        for p, weight in zip(params_of(resumed), weights, strict=True):
            p.copy_(weight)
    resumed.load_state_dict(state[0])
    resumed_scaler.load_state_dict(state[1])
    run(resumed, resumed_scaler, range(2, 9))
    assert snapshot(resumed) == snapshot(optimizer)
    assert resumed_scaler.state_dict() == scaler.state_dict()


@pytest.mark.feature("Mixed precision", "training under autocast")
@pytest.mark.feature("Mixed precision", "gradient accumulation")
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_autocast_with_accumulated_gradients_is_bitwise_torch(fused, masked):
    runs = []
    for cls, options in ((MaskedSGD, {"fused": fused}), (torch.optim.SGD, {"foreach": False})):
        model = mlp()
        optimizer = cls(model.parameters(), **OPTIONS, **options)
        keep = {p: normal(p.numel(), p.dtype, seed=1).view_as(p) > 0 for p in model.parameters() if masked}
        if masked and cls is MaskedSGD:
            optimizer.set_masks(keep)
        select(optimizer, keep)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for step in range(3):
            for micro_step in range(4):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_of(model, 4 * step + micro_step) / 4
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if cls is torch.optim.SGD:
                select(optimizer, keep)
        runs.append({key: value for key, value in snapshot(optimizer).items() if key[1] != "mask"})
    assert runs[0] == runs[1]


def select(optimizer, masks):
    with torch.no_grad():
        for p, mask in masks.items():
            for tensor in (p, *optimizer.state.get(p, {}).values()):
                tensor.copy_(torch.where(mask, tensor, 0.0))
