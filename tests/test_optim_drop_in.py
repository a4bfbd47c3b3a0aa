"""P1: without a mask MaskedSGD is torch.optim.SGD(foreach=False), to the bit, and their state dicts interchange."""

import copy
import pickle

import pytest
import torch
from cases import OPTIONS, bits_equal, generator, normal, option_id

from dsd_kernels import MaskedSGD

SIZES = (1, 2, 7, 8, 9, 31, 63, 65, 1000, 100_003)


def parameters(dtype, device, sizes=SIZES):
    return [torch.nn.Parameter(normal(n, dtype, seed=n).to(device)) for n in sizes]


def run(optimizer, params, n_steps, seed=0):
    """Steps with random gradients, an infrequent all-negative-zero one among them."""
    random = generator(seed)
    for step in range(n_steps):
        for p in params:
            grad = torch.randn(p.shape, dtype=torch.float64, generator=random)
            p.grad = (-0.0 * grad.abs() if step == 0 and p.numel() < 9 else grad).to(p.device, p.dtype)
        optimizer.step()


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert bits_equal(a.detach(), b.detach())


@pytest.mark.feature("Arguments", "momentum, dampening, weight decay, Nesterov, maximize")
@pytest.mark.feature("Dtypes", "float32 and float64 weights")
@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_option_is_bitwise_torch(backend, device, dtype, options):
    sizes = SIZES if backend != "triton" or device == "cuda" else SIZES[:-1]  # the interpreter is slow
    ours, theirs = parameters(dtype, device, sizes), parameters(dtype, device, sizes)
    optimizer, torch_sgd = MaskedSGD(ours, lr=0.1, **options), torch.optim.SGD(theirs, lr=0.1, foreach=False, **options)
    run(optimizer, ours, 5)
    run(torch_sgd, theirs, 5)
    assert_same(ours, theirs)
    for p, q in zip(ours, theirs, strict=True):
        a, b = optimizer.state[p].get("momentum_buffer"), torch_sgd.state[q].get("momentum_buffer")
        assert (a is None) == (b is None)
        assert a is None or bits_equal(a, b)


@pytest.mark.feature("Dtypes", "bfloat16 and float16 weights")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded_once(backend, device, dtype):
    ours = parameters(dtype, device, (65,))[0]
    optimizer = MaskedSGD([ours], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    wide = torch.nn.Parameter(ours.detach().float())
    reference = torch.optim.SGD([wide], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, foreach=False)
    for step in range(5):
        ours.grad = normal(65, dtype, seed=step).to(device)
        wide.grad = ours.grad.float()
        optimizer.step()
        reference.step()
        with torch.no_grad():
            wide.copy_(wide.to(dtype))
            reference.state[wide]["momentum_buffer"].copy_(reference.state[wide]["momentum_buffer"].to(dtype))
        assert_same([ours], [wide.to(dtype)])


@pytest.mark.feature("Arguments", "every option with masks")
@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_masks_it_is_a_step_then_a_selection(backend, device, dtype, options):
    sizes = (8, 65, 1000)
    ours, theirs = parameters(dtype, device, sizes), parameters(dtype, device, sizes)
    optimizer, torch_sgd = MaskedSGD(ours, lr=0.1, **options), torch.optim.SGD(theirs, lr=0.1, foreach=False, **options)
    masks = [(torch.rand(n, generator=generator(n)) > 0.5).to(device) for n in sizes]
    optimizer.set_masks(dict(zip(ours, masks, strict=True)))

    def select():
        for q, mask in zip(theirs, masks, strict=True):
            q.data = torch.where(mask, q.data, 0.0)
            if options["momentum"] and q in torch_sgd.state:
                buffer = torch_sgd.state[q]["momentum_buffer"]
                torch_sgd.state[q]["momentum_buffer"] = torch.where(mask, buffer, 0.0)

    select()
    for step in range(5):
        run(optimizer, ours, 1, seed=step)
        run(torch_sgd, theirs, 1, seed=step)
        select()
        assert_same(ours, theirs)


@pytest.mark.feature("State", "state dicts to and from torch.optim.SGD")
@pytest.mark.parametrize("direction", ["to torch", "from torch"])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=option_id)
def test_state_dicts_interchange_in_mid_run(options, direction):
    classes = (MaskedSGD, torch.optim.SGD) if direction == "to torch" else (torch.optim.SGD, MaskedSGD)
    uninterrupted = parameters(torch.float32, "cpu")
    reference = torch.optim.SGD(uninterrupted, lr=0.1, foreach=False, **options)
    run(reference, uninterrupted, 3, seed=0)
    run(reference, uninterrupted, 3, seed=1)

    params = parameters(torch.float32, "cpu")
    first = classes[0](params, lr=0.1, foreach=False, **options)
    run(first, params, 3, seed=0)
    second = classes[1](params, lr=0.5, foreach=False)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, params, 3, seed=1)
    assert_same(params, uninterrupted)


def masked_optimizer(**options):
    params = parameters(torch.float32, "cpu", (12, 65))
    params[0].data = params[0].data.view(3, 4)
    optimizer = MaskedSGD(params, lr=0.1, momentum=0.9, **options)
    run(optimizer, params, 2)
    optimizer.prune(0.5, params)
    run(optimizer, params, 2)
    return optimizer, params


def through_pickle(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.feature("State", "copy.deepcopy and pickle")
@pytest.mark.parametrize("copier", [copy.deepcopy, through_pickle])
def test_masks_and_flags_survive_copies(copier):
    optimizer, params = masked_optimizer(fused=True, mask_momentum="keep")
    twin = copier(optimizer)
    twins = twin.param_groups[0]["params"]
    assert twin._step_supports_amp_scaling
    assert twin.param_groups[0]["mask_momentum"] == "keep"
    run(optimizer, params, 3, seed=7)
    run(twin, twins, 3, seed=7)
    assert_same(params, twins)
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(optimizer.masks[p], twin.masks[q])


@pytest.mark.feature("State", "torch.save and torch.load with weights_only=True")
def test_stop_and_resume_through_a_file_is_the_run_that_never_stopped(tmp_path):
    optimizer, params = masked_optimizer()
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in params]}, tmp_path / "state.pt")
    run(optimizer, params, 4, seed=9)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert [saved["optimizer"]["state"][i]["mask"].dtype for i in (0, 1)] == [torch.bool] * 2
    assert saved["optimizer"]["state"][0]["mask"].shape == (3, 4)
    resumed = [torch.nn.Parameter(t) for t in saved["params"]]
    fresh = MaskedSGD(resumed, lr=0.7)
    fresh.load_state_dict(saved["optimizer"])
    run(fresh, resumed, 4, seed=9)
    assert_same(params, resumed)
    assert fresh.verify().rows == optimizer.verify().rows


@pytest.mark.feature("State", "masks on a trip through torch.optim.SGD")
def test_masks_come_back_from_a_trip_through_torch_sgd():
    optimizer, params = masked_optimizer()
    torch_sgd = torch.optim.SGD(params, lr=0.1)
    torch_sgd.load_state_dict(optimizer.state_dict())
    fresh = MaskedSGD(params, lr=0.1)
    fresh.load_state_dict(torch_sgd.state_dict())
    for p in params:
        assert torch.equal(fresh.masks[p], optimizer.masks[p])


@pytest.mark.feature("State", "a state dict without masks")
def test_loading_a_state_without_masks_drops_them():
    optimizer, params = masked_optimizer()
    optimizer.load_state_dict(torch.optim.SGD(params, lr=0.1).state_dict())
    assert optimizer.masks == {}


def with_change(change):
    def changed(state):
        change(state)
        return state

    return changed


BAD_STATES = {
    "no state dict": (lambda s: {"model": 1}, "state_dict: expected.*'state', which is missing"),
    "fewer groups": (with_change(lambda s: s["param_groups"].pop()), "different number of parameter groups"),
    "fewer parameters": (with_change(lambda s: s["param_groups"][0]["params"].pop()), "doesn't match the size"),
    "another optimizer's": (with_change(lambda s: s["param_groups"][0].pop("momentum")), "has no 'momentum'"),
    "momentum that is no tensor": (
        with_change(lambda s: s["state"][0].update(momentum_buffer=0.5)),
        r"momentum_buffer of params\[0\].*expected a tensor like its parameter, of torch.float32, got 0.5",
    ),
    "complex momentum": (
        with_change(lambda s: s["state"][0].update(momentum_buffer=torch.ones(3, 4) * 1j)),
        "expected a tensor like its parameter, of torch.float32, got torch.complex64",
    ),
    "sparse mask": (
        with_change(lambda s: s["state"][1].update(mask=torch.ones(65).to_sparse())),
        r"mask of params\[1\].*expected a strided tensor, got one in layout torch.sparse_coo",
    ),
    "an entry that is none": (with_change(lambda s: s["state"].update({0: None})), "expected a dict, got None"),
    "a list for the state": (lambda s: {**s, "state": []}, r"state_dict: state: expected a mapping, got \[\]"),
    "resized momentum": (
        with_change(lambda s: s["state"][0].update(momentum_buffer=torch.ones(5))),
        r"momentum_buffer of params\[0\].*expected shape \(3, 4\), got \(5,\)",
    ),
    "resized mask": (
        with_change(lambda s: s["state"][1].update(mask=torch.ones(5) > 0)),
        r"mask of params\[1\].*\(65,\)",
    ),
    "mask of other values": (with_change(lambda s: s["state"][1].update(mask=torch.full((65,), 0.5))), "0 and 1"),
    "mask that is no tensor": (
        with_change(lambda s: s["state"][1].update(mask="x")),
        "expected a bool tensor, got str",
    ),
}


@pytest.mark.feature("State", "another optimizer's, truncated, reordered or resized state", answer="refused")
@pytest.mark.parametrize("case", BAD_STATES)
def test_a_foreign_state_is_refused_whole(case):
    make, text = BAD_STATES[case]
    optimizer, _ = masked_optimizer()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=text):
        optimizer.load_state_dict(make(copy.deepcopy(before)))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i in (0, 1):
        assert all(torch.equal(after["state"][i][key], before["state"][i][key]) for key in ("momentum_buffer", "mask"))


def test_learning_rate_tensors_and_schedulers():
    ours, theirs = parameters(torch.float32, "cpu", (65,)), parameters(torch.float32, "cpu", (65,))
    optimizers = MaskedSGD(ours, lr=torch.tensor(0.1)), torch.optim.SGD(theirs, lr=torch.tensor(0.1), foreach=False)
    for optimizer, params in zip(optimizers, (ours, theirs), strict=True):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        for seed in range(6):
            run(optimizer, params, 1, seed=seed)
            scheduler.step()
    assert_same(ours, theirs)


def test_lr_factor_scales_the_step_and_leaves_lr_to_the_scheduler():
    ours, theirs = parameters(torch.float32, "cpu", (65,)), parameters(torch.float32, "cpu", (65,))
    optimizer, torch_sgd = MaskedSGD(ours, lr=0.5), torch.optim.SGD(theirs, lr=0.5 * 0.1, foreach=False)
    optimizer.param_groups[0]["lr_factor"] = 0.1
    run(optimizer, ours, 3)
    run(torch_sgd, theirs, 3)
    assert_same(ours, theirs)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.feature("Arguments", "gradients that come late, never, or all zero")
@pytest.mark.feature("Arguments", "add_param_group after some steps")
@pytest.mark.parametrize("dampening", [0, 0.3])
def test_late_missing_and_zero_gradients(dampening):
    sizes = (3, 65, 9)
    ours, theirs = parameters(torch.float32, "cpu", sizes), parameters(torch.float32, "cpu", sizes)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": dampening}
    optimizers = MaskedSGD(ours, **options), torch.optim.SGD(theirs, foreach=False, **options)
    for optimizer, params in zip(optimizers, (ours, theirs), strict=True):
        for step in range(4):
            for i, p in enumerate(params):
                p.grad = None if step < i else normal(p.numel(), p.dtype, seed=step) * (i != 2)
            optimizer.step()
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(4))], "lr": 0.01})
        params.append(optimizer.param_groups[1]["params"][0])
        run(optimizer, params, 2)
    assert_same(ours, theirs)


@pytest.mark.feature("Arguments", "0-dim, one-element and empty parameters")
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 0, 4)])
def test_scalars_and_empty_parameters(shape):
    p = torch.nn.Parameter(torch.ones(shape))
    optimizer = MaskedSGD([p], lr=0.1, momentum=0.9)
    optimizer.prune(0.5, [p])
    p.grad = torch.ones(shape)
    optimizer.step()
    assert optimizer.verify().rows[0].n == p.numel()
    assert torch.equal(p, torch.full(shape, 0.9))


@pytest.mark.feature("Arguments", "a parameter listed twice, with torch's warning")
def test_a_parameter_listed_twice_warns_and_steps_twice_as_in_torch():
    ours, theirs = torch.nn.Parameter(torch.ones(70)), torch.nn.Parameter(torch.ones(70))
    for cls, p in ((MaskedSGD, ours), (torch.optim.SGD, theirs)):
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = cls([p, p], lr=0.1, momentum=0.9, foreach=False)
        run(optimizer, [p], 3)
    assert_same([ours], [theirs])


@pytest.mark.feature("Dtypes", "complex weights")
@pytest.mark.feature("Dtypes", "sparse gradients")
def test_exotic_gradients_and_weights_take_torchs_own_loop():
    dense = torch.randn(4, 3, generator=generator())
    for make_param, make_grad in (
        (lambda: torch.nn.Parameter(dense.clone()), lambda: dense.to_sparse()),
        (lambda: torch.nn.Parameter(torch.complex(dense, dense)), lambda: torch.complex(dense, -dense)),
    ):
        ours, theirs = make_param(), make_param()
        optimizer, torch_sgd = MaskedSGD([ours], lr=0.1), torch.optim.SGD([theirs], lr=0.1, foreach=False)
        mask = dense > 0
        optimizer.set_masks({ours: mask})
        for _ in range(2):
            ours.grad, theirs.grad = make_grad(), make_grad()
            optimizer.step()
            torch_sgd.step()
            assert torch.equal(ours.detach(), torch.where(mask, theirs.detach(), 0.0))
        optimizer.verify()


@pytest.mark.feature("Arguments", "differentiable=True")
def test_differentiable_steps_carry_gradients_and_the_mask():
    start = torch.ones(4, requires_grad=True)
    p = start.clone()
    p.grad = torch.full((4,), 2.0, requires_grad=True)
    optimizer = MaskedSGD([p], lr=0.5, differentiable=True)
    optimizer.set_masks({p: torch.tensor([True, False, True, False])})
    optimizer.step()
    grads = torch.autograd.grad(p.sum(), [start, p.grad])
    assert p.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert grads[0].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert grads[1].tolist() == [-0.5, 0.0, -0.5, 0.0]


@pytest.mark.feature("Mixed precision", "an overflow in the very first step")
@pytest.mark.parametrize("dampening", [0, 0.3])
@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler_skips_overflows_also_on_the_first_step(fused, dampening):
    sizes = (65, 8)
    ours, theirs = parameters(torch.float32, "cpu", sizes), parameters(torch.float32, "cpu", sizes)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": dampening}
    optimizers = MaskedSGD(ours, fused=fused, **options), torch.optim.SGD(theirs, foreach=False, **options)
    for optimizer, params in zip(optimizers, (ours, theirs), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(5):
            before = [p.detach().clone() for p in params]
            for p in params:
                p.grad = normal(p.numel(), p.dtype, seed=step) * scaler.scale(torch.ones(1))
            if step in (0, 3):
                params[0].grad[3] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            if step in (0, 3):
                assert_same(params, before)
    assert_same(ours, theirs)


@pytest.mark.feature("Arguments", "closures")
@pytest.mark.feature("Arguments", "step hooks")
def test_hooks_and_closures_run_once():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = MaskedSGD([p], lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert calls == ["pre", "post"]
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.8))


@pytest.mark.feature("State", "another optimizer's, truncated, reordered or resized state", answer="refused")
def test_named_parameters_in_another_order_are_refused():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    state = MaskedSGD([("a", a), ("b", b)], lr=0.1).state_dict()
    with pytest.raises(ValueError, match=r"expected the parameters \['b', 'a'\] in this order, got \['a', 'b'\]"):
        MaskedSGD([("b", b), ("a", a)], lr=0.1).load_state_dict(state)
    MaskedSGD([("module.a", a), ("module.b", b)], lr=0.1).load_state_dict(state)


@pytest.mark.feature("State", "state dict hooks that reorder parameters")
def test_hooks_see_masks_and_may_reorder_parameters():
    a, b = (torch.nn.Parameter(normal(8, torch.float32, seed=i)) for i in (0, 1))
    saved = MaskedSGD([("a", a), ("b", b)], lr=0.1)
    masks = {a: a.detach() > 0, b: b.detach() < 0}
    saved.set_masks(masks)
    seen = []
    saved.register_state_dict_post_hook(lambda _, state: seen.append("mask" in state["state"][0]))
    state = saved.state_dict()
    assert seen == [True]

    def reorder(_, state):
        order = [state["param_groups"][0]["param_names"].index(name) for name in ("b", "a")]
        groups = [{**state["param_groups"][0], "param_names": ["b", "a"]}]
        return {**state, "state": {i: state["state"][j] for i, j in enumerate(order)}, "param_groups": groups}

    loaded = MaskedSGD([("b", b), ("a", a)], lr=0.1)
    loaded.register_load_state_dict_pre_hook(reorder)
    loaded.register_load_state_dict_post_hook(lambda optimizer: seen.append(len(optimizer.masks)))
    loaded.load_state_dict(state)
    assert seen[1:] == [2]
    assert torch.equal(loaded.masks[a], masks[a])
    assert torch.equal(loaded.masks[b], masks[b])


@pytest.mark.feature("Layouts", "parameters whose elements overlap", answer="refused")
def test_a_step_that_raises_changes_nothing():
    good, late = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    bad = torch.nn.Parameter(torch.ones(1).expand(6))
    optimizer = MaskedSGD([{"params": [late]}, {"params": [good, bad]}], lr=0.1, momentum=0.9, dampening=0.5)
    for p in (good, late, bad):
        p.grad = torch.ones(p.shape)
    with pytest.raises(RuntimeError, match="share memory"):
        optimizer.step()
    assert torch.equal(late.detach(), torch.ones(4))
    assert not optimizer.state
    bad.grad = None
    optimizer.step()
    torch.testing.assert_close(good.detach(), torch.full((4,), 0.9))  # a first step is not dampened


@pytest.mark.feature("Dtypes", "model.half() between steps")
def test_mixed_dtypes_that_torch_accepts_are_stepped_as_torch_does():
    def run_half(optimizer, model):
        for i in range(4):
            if i == 2:
                model.half()  # the weights change, the momentum stays float32
            optimizer.zero_grad()
            for p in model.parameters():
                p.grad = normal(p.numel(), p.dtype, seed=i).view_as(p)
            optimizer.step()

    models = [torch.nn.Linear(3, 5) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"lr": 0.1, "momentum": 0.9}
    optimizers = (
        MaskedSGD(models[0].parameters(), **options),
        torch.optim.SGD(models[1].parameters(), foreach=False, **options),
    )
    for optimizer, model in zip(optimizers, models, strict=True):
        run_half(optimizer, model)
    assert_same(models[0].parameters(), models[1].parameters())
    optimizers[0].prune(0.5)
    optimizers[0].verify()


def test_the_amp_flag_follows_the_groups():
    p = torch.nn.Parameter(torch.ones(3))
    fused = MaskedSGD([p], lr=0.1, fused=True)
    fused.load_state_dict(MaskedSGD([p], lr=0.1).state_dict())
    assert not fused._step_supports_amp_scaling


@pytest.mark.feature("Arguments", "values out of range, not finite or of another type", answer="refused")
def test_groups_are_checked_wherever_they_come_from():
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="lr: expected a finite number, got nan"):
        MaskedSGD([p], lr=torch.tensor(torch.nan))
    with pytest.raises(TypeError, match="lr: expected a number, got 'fast'"):
        MaskedSGD([{"params": [p], "lr": "fast"}], lr=0.1)
    optimizer = MaskedSGD([p], lr=0.1)
    with pytest.raises(ValueError, match="mask_momentum: expected"):
        optimizer.add_param_group({"params": [q], "mask_momentum": "Zero"})
    assert len(optimizer.param_groups) == 1
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr: expected a finite number"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1


BAD_CONSTRUCTIONS = {
    "lr negative": ({"lr": -0.1}, ValueError, "Invalid learning rate: -0.1"),
    "lr nan": ({"lr": float("nan")}, ValueError, "lr: expected a finite number, got nan"),
    "lr inf": ({"lr": float("inf")}, ValueError, "lr: expected a finite number, got inf"),
    "lr a string": ({"lr": "fast"}, TypeError, "lr: expected a number, got 'fast'"),
    "lr of two elements": ({"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
    "momentum negative": ({"momentum": -1}, ValueError, "Invalid momentum value: -1"),
    "weight decay negative": ({"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    "nesterov alone": ({"nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    "unknown policy": (
        {"mask_momentum": "halve"},
        ValueError,
        'mask_momentum: expected "zero" or "keep", got \'halve\'',
    ),
    "fused and foreach": ({"fused": True, "foreach": True}, RuntimeError, "cannot be `True` together"),
}


@pytest.mark.feature("Arguments", "values out of range, not finite or of another type", answer="refused")
@pytest.mark.parametrize("case", BAD_CONSTRUCTIONS)
def test_bad_hyper_parameters(case):
    options, error, text = BAD_CONSTRUCTIONS[case]
    with pytest.raises(error, match=text):
        MaskedSGD([torch.nn.Parameter(torch.ones(2))], **options)


@pytest.mark.feature("Layouts", "parameters whose elements overlap", answer="refused")
@pytest.mark.feature("Dtypes", "integer weights with gradients", answer="refused")
@pytest.mark.feature("Dtypes", "sparse gradients with fused=True", answer="refused")
def test_what_cannot_be_stepped_raises():
    p = torch.nn.Parameter(torch.ones(1).expand(6))
    p.grad = torch.ones(6)
    with pytest.raises(RuntimeError, match=r"shape \(6,\) with strides \(0,\) share memory; clone\(\) it"):
        MaskedSGD([p], lr=0.1).step()
    integer = torch.nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)
    optimizer = MaskedSGD([integer], lr=0.1)
    optimizer.step()
    integer.grad = torch.ones(3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="integral"):
        optimizer.step()
    sparse = torch.nn.Parameter(torch.ones(3))
    sparse.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="fused=True does not support sparse"):
        MaskedSGD([sparse], lr=0.1, fused=True).step()
