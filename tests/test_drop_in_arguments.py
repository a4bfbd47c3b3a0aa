"""P1: every argument of torch.optim.SGD and of its optimizer contract, alone and together, with masks and without."""

import inspect

import pytest
import torch
from cases import bits_equal
from side_by_side import (
    batch,
    mask_some,
    masked_or_not,
    parameters,
    side_by_side,
    small_model,
    take_steps,
    train_model,
)
from torch.optim import lr_scheduler

from dsd_kernels import MaskedSGD

SHAPES = ((3, 7), (65,), (), (0, 4), (1,))


def make_params():
    return parameters(*SHAPES)


RATES = {
    "float": 0.1,
    "int": 1,
    "zero": 0.0,
    "0-dim tensor": torch.tensor(0.1),
    "1-dim tensor": torch.tensor([0.1]),
    "2-dim tensor": torch.tensor([[0.1]]),
    "float64 tensor": torch.tensor(0.1, dtype=torch.float64),
    "bfloat16 tensor": torch.tensor(0.1, dtype=torch.bfloat16),
}


@pytest.mark.feature("Arguments", "lr as a float or a one-element tensor")
@masked_or_not
@pytest.mark.parametrize("rate", RATES)
def test_every_kind_of_learning_rate(rate, masked):
    side_by_side(take_steps, make_params, masked, lr=RATES[rate], momentum=0.9, weight_decay=0.01)


@pytest.mark.feature("Arguments", "lr changed between steps, a tensor also in place")
@masked_or_not
@pytest.mark.parametrize("rate", ["float", "0-dim tensor", "1-dim tensor", "float64 tensor"])
def test_a_learning_rate_changed_between_steps(rate, masked):
    def train(optimizer, params):
        group = optimizer.param_groups[0]
        for step in range(4):
            take_steps(optimizer, params, 1, seed=step)
            if isinstance(group["lr"], float):
                group["lr"] *= 0.7
            else:
                group["lr"].mul_(0.7)
        group["lr"] = 0.02
        take_steps(optimizer, params, 1)

    side_by_side(train, make_params, masked, lr=RATES[rate], momentum=0.9)


@pytest.mark.feature("Arguments", "weight_decay as a tensor")
@masked_or_not
def test_a_tensor_weight_decay(masked):
    side_by_side(take_steps, make_params, masked, momentum=0.9, weight_decay=torch.tensor(0.01))


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=8),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.2, step_size_up=2),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.feature("Arguments", "learning rate schedulers, also those that write momentum")
@masked_or_not
@pytest.mark.parametrize("rate", ["float", "0-dim tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler, rate, masked):
    rates = []

    def train(optimizer, params):
        schedule = SCHEDULERS[scheduler](optimizer)
        for step in range(7):
            take_steps(optimizer, params, 1, seed=step)
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
            rates.append((float(optimizer.param_groups[0]["lr"]), optimizer.param_groups[0]["momentum"]))

    side_by_side(train, make_params, masked, lr=RATES[rate], momentum=0.9)
    assert len(set(rates[:7])) > 1
    assert rates[:7] == rates[7:]


@pytest.mark.feature("Arguments", "foreach and fused")
@masked_or_not
@pytest.mark.parametrize(
    "choice", [{"foreach": f} for f in (None, False, True)] + [{"fused": f} for f in (False, True)]
)
def test_foreach_and_fused_do_not_change_a_bit(choice, masked):
    side_by_side(take_steps, make_params, masked, ours=choice, momentum=0.9, nesterov=True, weight_decay=0.01)


@pytest.mark.feature("Arguments", "defaults and the signature of torch.optim.SGD")
def test_the_signature_and_defaults_are_torchs_and_ours_behind_them():
    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (MaskedSGD, torch.optim.SGD))
    assert [(p.name, p.kind, p.default) for p in ours[: len(theirs)]] == [(p.name, p.kind, p.default) for p in theirs]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in ours[len(theirs) :])
    options = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True, "maximize": True, "foreach": False}
    optimizer, torch_sgd = (cls(parameters((2,)), **options) for cls in (MaskedSGD, torch.optim.SGD))
    assert torch_sgd.defaults.items() <= optimizer.defaults.items()
    assert {p.name for p in ours[len(theirs) :]} | {"lr_factor"} <= optimizer.defaults.keys()
    assert optimizer.param_groups[0].keys() == optimizer.defaults.keys() | {"params"}


GROUPS = (
    {"lr": 0.5, "momentum": 0.0},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02},
    {"momentum": 0.5, "nesterov": True, "maximize": True},
)


@pytest.mark.feature("Arguments", "several groups with options of their own")
@masked_or_not
def test_groups_with_options_of_their_own(masked):
    def make_groups(optimizer, params):
        for options in GROUPS:
            group = parameters((5, 13), (9,))
            optimizer.add_param_group({"params": group, **options})
            params += group
        if masked:
            mask_some(optimizer, params[1:])
        take_steps(optimizer, params)

    optimizer = side_by_side(make_groups, make_params)
    assert len(optimizer.param_groups) == 4


@pytest.mark.feature("Arguments", "add_param_group after some steps")
def test_a_group_added_to_masked_ones_trains_beside_them():
    def train(optimizer, params):
        take_steps(optimizer, params)
        params += parameters((4, 4), (70,))
        optimizer.add_param_group({"params": params[-2:], "lr": 0.01, "momentum": 0.3})
        take_steps(optimizer, params, seed=4)
        mask_some(optimizer, params[-2:])
        take_steps(optimizer, params, seed=8)

    optimizer = side_by_side(train, make_params, masked=True, momentum=0.9)
    assert len(optimizer.masks) == 4
    assert optimizer.param_groups[1]["lr_factor"] == 1


@pytest.mark.feature("Arguments", "gradients that come late, never, or all zero")
@masked_or_not
@pytest.mark.parametrize("dampening", [0, 0.3])
def test_gradients_that_come_late_or_never(dampening, masked):
    def train(optimizer, params):
        for step in range(5):
            take_steps(optimizer, params[: step + 1], 1, seed=step)
            for p in params[3:]:
                p.grad = None
            params[1].grad = torch.zeros_like(params[1])

    side_by_side(train, make_params, masked, momentum=0.9, dampening=dampening, weight_decay=0.01)


@pytest.mark.feature("Arguments", "0-dim, one-element and empty parameters")
@masked_or_not
@pytest.mark.parametrize("shape", SHAPES)
def test_each_odd_shape_alone(shape, masked):
    side_by_side(take_steps, lambda: parameters(shape), masked, momentum=0.9, dampening=0.1, weight_decay=0.01)


@pytest.mark.feature("Arguments", "tied weights")
@masked_or_not
def test_tied_weights_step_once(masked):
    def tied():
        model = torch.nn.Sequential(*(torch.nn.Linear(10, 10) for _ in range(3)))
        torch.manual_seed(0)
        for layer in model:
            layer.reset_parameters()
        model[2].weight = model[0].weight
        return model

    optimizer = side_by_side(train_model, tied, masked, momentum=0.9)
    assert len(optimizer.param_groups[0]["params"]) == 5


@pytest.mark.feature("Arguments", "named parameters")
def test_named_parameters_name_groups_state_and_errors():
    optimizer, torch_sgd = (cls(small_model().named_parameters(), lr=0.1) for cls in (MaskedSGD, torch.optim.SGD))
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert optimizer.param_groups[0]["param_names"] == torch_sgd.param_groups[0]["param_names"] == names
    optimizer.prune(0.5)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    assert "2.weight" in str(optimizer.sparsity())
    with pytest.raises(ValueError, match=r"masks: expected shape \(20, 10\) for 0.weight, got \(2,\)"):
        optimizer.set_masks({optimizer.param_groups[0]["params"][0]: torch.ones(2) > 0})
    with pytest.raises(ValueError, match="param groups should be with/without names"):
        optimizer.add_param_group({"params": parameters((2,))})


@pytest.mark.feature("Arguments", "zero_grad to None or to zeros")
@masked_or_not
@pytest.mark.parametrize("to_none", [True, False])
def test_both_ways_of_zero_grad(to_none, masked):
    def train(optimizer, model):
        for step in range(4):
            model(batch(step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
            optimizer.step()  # torch decays weights and applies momentum where the gradient is zero

    side_by_side(train, small_model, masked, momentum=0.9, weight_decay=0.1)


@pytest.mark.feature("Arguments", "closures")
@masked_or_not
def test_closures_are_called_with_gradients_enabled_and_their_loss_is_returned(masked):
    losses = []

    def train(optimizer, model):
        def closure():
            optimizer.zero_grad()
            loss = model(batch()).square().mean()
            loss.backward()
            return loss

        with torch.no_grad():
            losses.append([optimizer.step(closure).item() for _ in range(3)])

    side_by_side(train, small_model, masked, momentum=0.9)
    assert losses[0] == losses[1]


@pytest.mark.feature("Arguments", "two steps on one gradient, closures that evaluate twice")
@masked_or_not
def test_two_steps_on_one_gradient_and_a_closure_that_evaluates_twice(masked):
    def train(optimizer, model):
        def closure():
            optimizer.zero_grad()
            for seed in range(2):
                loss = model(batch(seed)).square().mean()
                loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
            optimizer.step()

    side_by_side(train, small_model, masked, momentum=0.9, nesterov=True)


@pytest.mark.feature("Arguments", "parameters frozen and thawed")
@masked_or_not
def test_frozen_parameters_rest_and_thawed_ones_go_on(masked):
    def train(optimizer, model):
        for frozen in (False, True, False):
            model[0].requires_grad_(not frozen)
            before = model[0].weight.detach().clone()
            train_model(optimizer, model, 2)
            assert bits_equal(model[0].weight.detach(), before) == frozen

    side_by_side(train, small_model, masked, momentum=0.9, weight_decay=0.01)
