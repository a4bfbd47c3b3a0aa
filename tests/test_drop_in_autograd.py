"""P1: MaskedSGD beside everything that autograd and torch.nn.utils do with parameters and gradients."""

import contextlib

import pytest
import torch
from cases import bits_equal, normal
from side_by_side import batch, masked_or_not, parameters, side_by_side, small_model, take_steps, train_model
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from dsd_kernels import MaskedSGD


def loss_of(model, seed=0):
    return model(batch(seed)).square().mean()


MODIFIED = "modified by an inplace operation"
KINDS = {
    "dense": lambda t: t,
    "with gaps": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "bfloat16": lambda t: t.bfloat16(),
}
WRITES = {
    "step": lambda o, p: o.step(),
    "prune": lambda o, p: o.prune(0.5),
    "set_masks": lambda o, p: o.set_masks({p: torch.ones_like(p) > 0}),
}


def masked_weight(kind, device, **options):
    """A weight that has a mask, momentum and a gradient."""
    p = torch.nn.Parameter(KINDS[kind](normal(65, torch.float32).view(5, 13).to(device)))
    optimizer = MaskedSGD([p], lr=0.1, momentum=0.9, **options)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.prune(0.3)
    return optimizer, p


@pytest.mark.feature("Autograd", "a step, prune or set_masks between forward and backward", answer="refused")
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_write_between_forward_and_backward_raises_torchs_error(backend, device, kind, write):
    optimizer, p = masked_weight(kind, device)
    buffer = optimizer.state[p]["momentum_buffer"]
    losses = p.square().sum(), (torch.ones_like(buffer, requires_grad=True) * buffer).sum()
    WRITES[write](optimizer, p)
    for loss in losses:
        with pytest.raises(RuntimeError, match=MODIFIED):
            loss.backward()


@pytest.mark.feature("Autograd", "a step, prune or set_masks between forward and backward", answer="refused")
@pytest.mark.parametrize("write", WRITES)
def test_a_write_of_master_weights_raises_torchs_error_too(backend, device, write):
    optimizer, p = masked_weight("bfloat16", device, master_weights=True)
    loss = p.square().sum()
    WRITES[write](optimizer, p)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_densify_and_reading_between_forward_and_backward_are_harmless():
    optimizer, p = masked_weight("dense", "cpu")
    loss = p.square().sum()
    optimizer.densify()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.sparsity()
    optimizer.verify()
    loss.backward()


@pytest.mark.feature("Autograd", "torch.func.grad, vmap and functional_call over the optimizer's parameters")
@masked_or_not
def test_functional_gradients(masked):
    def train(optimizer, model):
        def loss(weights, x):
            return torch.func.functional_call(model, weights, (x,)).square().mean()

        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
        for step in range(3):
            grads = per_sample({name: p.detach() for name, p in model.named_parameters()}, batch(step))
            for name, p in model.named_parameters():
                p.grad = grads[name].mean(0)
            optimizer.step()

    side_by_side(train, small_model, masked, momentum=0.9)


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.feature("Autograd", "torch.nn.utils.parametrize: weight_norm, orthogonal, spectral_norm")
@masked_or_not
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_parametrized_modules(parametrization, masked):
    def parametrized():
        model = small_model()
        PARAMETRIZATIONS[parametrization](model[2])
        return model

    side_by_side(train_model, parametrized, masked, momentum=0.9, weight_decay=0.01)


@pytest.mark.feature("Autograd", "swa_utils: AveragedModel, EMA, SWALR, update_bn")
@masked_or_not
@pytest.mark.parametrize("average", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}], ids=["SWA", "EMA"])
def test_averaged_models(average, masked):
    averages = []

    def with_batch_norm():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.BatchNorm1d(20), torch.nn.Linear(20, 3))

    def train(optimizer, model):
        averaged, schedule = AveragedModel(model, **average), SWALR(optimizer, swa_lr=0.02, anneal_epochs=3)
        for _ in range(4):
            train_model(optimizer, model, 2)
            averaged.update_parameters(model)
            schedule.step()
        update_bn([batch(seed) for seed in range(3)], averaged)
        averages.append([*averaged.parameters(), *averaged.module[1].buffers()])

    optimizer = side_by_side(train, with_batch_norm, masked, momentum=0.9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    for ours, theirs in zip(*averages, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.feature("Autograd", "swa_utils: AveragedModel, EMA, SWALR, update_bn")
def test_weights_copied_back_from_an_average_stay_masked_from_the_next_step_on():
    model = small_model()
    averaged = AveragedModel(model)
    optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    averaged.update_parameters(model)  # dense weights
    optimizer.prune(0.5)
    with torch.no_grad():
        for p, mean in zip(model.parameters(), averaged.parameters(), strict=True):
            p.copy_(mean)
    train_model(optimizer, model, 1)
    assert [row.n_pruned for row in optimizer.verify().rows] == [100, 30]


CLIPS = {
    "clip_grad_norm_": lambda params: clip_grad_norm_(params, 0.1),
    "clip_grad_norm_ without foreach": lambda params: clip_grad_norm_(params, 0.1, foreach=False),
    "clip_grad_value_": lambda params: clip_grad_value_(params, 0.01),
}


@pytest.mark.feature("Autograd", "gradient clipping by norm and by value")
@masked_or_not
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("clip", CLIPS)
def test_gradient_clipping(clip, fused, masked):
    clipped = []

    def train(optimizer, model):
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            before = [p.grad.clone() for p in model.parameters()]
            CLIPS[clip](model.parameters())
            clipped.append(not all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True)))
            optimizer.step()

    side_by_side(train, small_model, masked, ours={"fused": fused}, momentum=0.9)
    assert any(clipped)


@pytest.mark.feature("Autograd", "gradient accumulation")
@masked_or_not
def test_gradient_accumulation(masked):
    def train(optimizer, model):
        for step in range(6):
            (loss_of(model, step) / 3).backward()
            if step % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()

    side_by_side(train, small_model, masked, momentum=0.9)


@pytest.mark.feature("Autograd", "retain_graph, double backward, gradients that carry a graph")
@masked_or_not
def test_gradients_of_gradients(masked):
    def train(optimizer, model):
        for step in range(3):
            optimizer.zero_grad()
            x = batch(step).requires_grad_()
            loss = model(x).square().mean()
            penalty = torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()
            loss.backward(retain_graph=True)
            penalty.backward()
            optimizer.step()
            loss = loss_of(model, step)
            for p, grad in zip(
                model.parameters(), torch.autograd.grad(loss, model.parameters(), create_graph=True), strict=True
            ):
                p.grad = grad
            assert all(p.grad.requires_grad for p in model.parameters())
            optimizer.step()
            assert all(p.is_leaf and p.requires_grad for p in model.parameters())

    side_by_side(train, small_model, masked, momentum=0.9)


def unrolled(cls, masked, lr, **options):
    """Final weights, and their gradient with respect to the first weights and a tensor lr, through four steps."""
    start = normal(65, torch.float64).requires_grad_()
    p = start.clone()
    mask = normal(65, torch.float64, seed=1) > 0 if masked else torch.ones(65, dtype=torch.bool)
    optimizer = cls([p], lr=lr, differentiable=True, **options)
    if isinstance(optimizer, MaskedSGD):
        optimizer.set_masks({p: mask} if masked else {})
    else:
        p.data.masked_fill_(~mask, 0.0)
        optimizer.register_step_post_hook(lambda *_: differentiable_selection(optimizer, p, mask))
    for _ in range(4):
        weights = p.clone()
        p.grad = torch.autograd.grad((weights**3).sum(), weights, create_graph=True)[0]
        optimizer.step()
    return [p, *torch.autograd.grad(p.square().sum(), [start, *([lr] if isinstance(lr, torch.Tensor) else [])])]


def differentiable_selection(optimizer, p, mask):
    p.masked_fill_(~mask, 0.0)
    state = optimizer.state[p]
    if "momentum_buffer" in state:
        state["momentum_buffer"] = state["momentum_buffer"].masked_fill(~mask, 0.0)


@pytest.mark.feature("Autograd", "differentiable=True: gradients through steps, also of lr")
@masked_or_not
@pytest.mark.parametrize(
    "options",
    [
        {"lr": torch.tensor(0.1, dtype=torch.float64, requires_grad=True), "weight_decay": 0.01},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    ],
    ids=["tensor lr", "momentum"],
)
def test_gradients_through_steps(options, masked):
    ours, theirs = (unrolled(cls, masked, **options) for cls in (MaskedSGD, torch.optim.SGD))
    assert all(bits_equal(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True))
    assert all(gradient.any() for gradient in ours[1:])


@pytest.mark.feature("Autograd", "parameters that require no gradient, with one given by hand")
@masked_or_not
def test_a_gradient_given_by_hand_is_enough(masked):
    side_by_side(take_steps, lambda: [p.requires_grad_(False) for p in parameters((5, 13), (7,))], masked, momentum=0.9)


@pytest.mark.feature("Autograd", "steps under no_grad, enable_grad and inference_mode")
@masked_or_not
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_steps_within_every_gradient_mode(mode, masked):
    def train(optimizer, model):
        for step, around in enumerate([contextlib.nullcontext, mode, contextlib.nullcontext, mode]):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            with around():
                optimizer.step()

    side_by_side(train, small_model, masked, momentum=0.9)


@pytest.mark.feature("Autograd", "steps under no_grad, enable_grad and inference_mode")
@masked_or_not
def test_a_run_whose_steps_are_all_within_inference_mode(masked):
    def train(optimizer, params):
        with torch.inference_mode():
            take_steps(optimizer, params)

    side_by_side(train, lambda: parameters((5, 13), (7,)), masked, momentum=0.9)


def test_prune_within_inference_mode_can_be_trained_on():
    model = small_model()
    optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    train_model(optimizer, model, 1)
    with torch.inference_mode():
        optimizer.prune(0.5)
    train_model(optimizer, model, 2)
    optimizer.prune(0.6)
    train_model(optimizer, model, 2)
    assert [row.n_pruned for row in optimizer.verify().rows] == [120, 36]
