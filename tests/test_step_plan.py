"""A step reuses what the step before found; whatever is changed in between, it does what a first look would."""

import gc
import weakref
from collections import defaultdict

import pytest
import torch
from cases import bits_equal, normal

from dsd_kernels import MaskedSGD
from dsd_kernels.step import StepCall
from dsd_kernels.step_plan import StepPlan

SHAPES = ((5, 13), (13, 13), (7,), (2, 3, 4, 4))


def start():
    params = [torch.nn.Parameter(normal(torch.Size(s).numel(), torch.float32).view(s)) for s in SHAPES]
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:]}]
    optimizer = MaskedSGD(groups, lr=0.1, momentum=0.9)
    optimizer.prune(0.5, params[0])
    return params, optimizer


def give_gradients(params, step):
    for p in params:
        p.grad = normal(p.numel(), p.dtype, seed=50 + step).view(p.shape)


def everything(params, optimizer):
    state = [value for p in params for value in optimizer.state.get(p, {}).values()]
    return [p.detach() for p in params] + [value for value in state if isinstance(value, torch.Tensor)]


def set_data(p, data):
    p.data = data


def set_data_and_gradient(p, data):
    p.grad = None
    p.data, p.grad = data, torch.ones_like(data)


def set_options(optimizer, **options):
    for group in optimizer.param_groups:
        group.update(options)


def give_gradients_for_the_loop(p):
    """One sparse, one of another dtype: both are torch's own loop's."""
    p[2].grad = p[2].grad.to_sparse()
    p[3].grad, p[3].grad_dtype = None, None  # any dtype
    p[3].grad = normal(96, torch.float64).view(2, 3, 4, 4)


def exchange(params, new):
    params[-1] = new


CHANGES = {
    "nothing": lambda p, o: None,
    "weights moved": lambda p, o: set_data(p[1], p[1].data.clone()),
    "weights transposed where they are": lambda p, o: set_data(p[1], p[1].data.t()),
    "weights in another dtype": lambda p, o: set_data(p[2], p[2].data.double()),
    "weights in another memory format": lambda p, o: set_data(p[3], p[3].data.to(memory_format=torch.channels_last)),
    "weights with gaps": lambda p, o: set_data(p[2], p[2].data.repeat_interleave(2)[::2]),
    "momentum replaced": lambda p, o: o.state[p[0]].update(momentum_buffer=torch.ones(5, 13)),
    "momentum moved": lambda p, o: set_data(o.state[p[1]]["momentum_buffer"], torch.ones(13, 13)),
    "momentum dropped": lambda p, o: o.state[p[1]].clear(),
    "entry replaced": lambda p, o: o.state.update({p[1]: {}}),
    "state emptied": lambda p, o: o.state.clear(),
    "state replaced": lambda p, o: setattr(o, "state", defaultdict(dict)),
    "state loaded": lambda p, o: o.load_state_dict(start()[1].state_dict()),
    "masks set": lambda p, o: o.set_masks({p[1]: p[1] > 0}),
    "masks dropped": lambda p, o: o.densify(),
    "pruned further": lambda p, o: o.prune(0.8),
    "momentum off": lambda p, o: set_options(o, momentum=0),
    "numbers": lambda p, o: set_options(o, lr=0.01, momentum=0.5, weight_decay=0.2, nesterov=True, maximize=True),
    "dampening": lambda p, o: set_options(o, dampening=0.5),
    "rate a tensor": lambda p, o: set_options(o, lr=torch.tensor(0.01)),
    "weight decay a tensor": lambda p, o: set_options(o, weight_decay=torch.tensor(0.01)),
    "mask policy": lambda p, o: set_options(o, mask_momentum="keep"),
    "group added": lambda p, o: o.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]}),
    "group removed": lambda p, o: o.param_groups.pop(),
    "parameter removed": lambda p, o: o.param_groups[1]["params"].pop(0),
    "parameters in another order": lambda p, o: o.param_groups[0]["params"].reverse(),
    "parameter exchanged": lambda p, o: exchange(o.param_groups[0]["params"], torch.nn.Parameter(torch.ones(13, 13))),
    "gradient missing": lambda p, o: setattr(p[1], "grad", None),
    "gradient expanded": lambda p, o: setattr(p[1], "grad", torch.ones(1).expand(13, 13)),
    "gradient transposed": lambda p, o: setattr(p[1], "grad", normal(169, torch.float32).view(13, 13).t()),
    "gradient without memory": lambda p, o: setattr(p[1], "grad", torch._efficientzerotensor((13, 13))),
    "gradient negated lazily": lambda p, o: setattr(p[1], "grad", torch._neg_view(torch.ones(13, 13))),
    "weights shrunk where they are": lambda p, o: set_data_and_gradient(p[2], p[2].data.as_strided((6,), (1,))),
    "weights in another shape where they are": lambda p, o: set_data_and_gradient(p[1], p[1].data.view(169)),
    "masked weights in another shape": lambda p, o: set_data_and_gradient(p[0], p[0].data.view(13, 5)),
    "differentiable": lambda p, o: set_options(o, differentiable=True),
    "rate not finite": lambda p, o: set_options(o, lr=float("nan")),
    "rate a text": lambda p, o: set_options(o, lr="0.1"),
    "an unknown policy": lambda p, o: set_options(o, mask_momentum="zeros"),
    "gradients for the loop": lambda p, o: give_gradients_for_the_loop(p),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_kept_plan_gives_what_a_new_one_would(backend, change):
    runs = []
    for keeps_plan in (True, False):
        params, optimizer = start()
        errors = []
        for step in range(6):
            listed = [p for group in optimizer.param_groups for p in group["params"]]
            give_gradients(listed if step > 3 else params, step)
            if step == 3:
                change(params, optimizer)
            if not keeps_plan:
                optimizer._plan = None
            errors.append(error_of(optimizer.step))
        runs.append((everything(listed, optimizer), errors))
    (kept, kept_errors), (anew, new_errors) = runs
    assert kept_errors == new_errors
    assert len(kept) == len(anew)
    assert all(bits_equal(a, b) for a, b in zip(kept, anew, strict=True))


def error_of(call):
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def test_what_is_set_between_steps_is_checked():
    for options, error, text in (
        ({"lr": float("inf")}, ValueError, "lr: expected a finite number"),
        ({"weight_decay": "0.1"}, TypeError, "weight_decay: expected a"),
        ({"mask_momentum": "zeros"}, ValueError, "mask_momentum: expected"),
        ({"momentum_dtype": torch.float64}, ValueError, "momentum_dtype: expected None or torch.float32"),
    ):
        params, optimizer = start()
        for step in range(3):
            give_gradients(params, step)
            optimizer.step()
        before = [t.clone() for t in everything(params, optimizer)]
        optimizer.param_groups[1].update(options)
        with pytest.raises(error, match=text):
            optimizer.step()
        assert all(bits_equal(a, b) for a, b in zip(everything(params, optimizer), before, strict=True))


TOGGLES = {
    "masters": {"master_weights": True},
    "wide momentum": {"momentum_dtype": torch.float32},
    "stochastic rounding": {"stochastic_rounding": True, "rounding_seed": 4},
    "another seed": {"rounding_seed": 7},
    "nothing careful": {"master_weights": False, "momentum_dtype": None, "stochastic_rounding": False},
    "a key for every mask": {"full_state_dict": True},
}


@pytest.mark.parametrize("initial", [{}, {"master_weights": True}, {"stochastic_rounding": True}], ids=str)
@pytest.mark.parametrize("toggle", TOGGLES.values(), ids=TOGGLES)
def test_options_for_halves_may_change_between_steps(initial, toggle):
    if initial.get("master_weights") and toggle.get("stochastic_rounding"):
        toggle = {**toggle, "master_weights": False}
    if initial.get("stochastic_rounding") and toggle.get("master_weights"):
        toggle = {**toggle, "stochastic_rounding": False}
    runs = []
    for keeps_plan in (True, False):
        p = torch.nn.Parameter(normal(65, torch.bfloat16))
        optimizer = MaskedSGD([p], lr=0.01, momentum=0.9, **initial)
        for step in range(6):
            give_gradients([p], step)
            if step == 3:
                set_options(optimizer, **toggle)
            if not keeps_plan:
                optimizer._plan = None
            optimizer.step()
        runs.append((everything([p], optimizer), sorted(optimizer.state[p])))
    assert runs[0][1] == runs[1][1]
    assert all(bits_equal(a, b) for a, b in zip(runs[0][0][:2], runs[1][0][:2], strict=True))


def test_replaced_master_weights_are_taken():
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = MaskedSGD([p], lr=2.0**-10, master_weights=True)
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    replacement = p.detach().float() + 2.0**-12  # rounds to the parameter as it is
    optimizer.state[p]["master_weight"] = replacement.clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.step()
    assert torch.equal(optimizer.state[p]["master_weight"], replacement)


def test_a_sparse_gradient_does_not_end_the_plan_of_the_others(monkeypatch):
    made = []
    monkeypatch.setattr(StepPlan, "__init__", lambda self, *args: made.append(1) or original(self, *args))
    embedding, other = torch.nn.Embedding(6, 4, sparse=True), torch.nn.Parameter(torch.ones(5))
    optimizer = MaskedSGD([embedding.weight, other], lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        (embedding(torch.tensor([step])).sum() + other.sum()).backward()
        optimizer.step()
    assert len(made) <= 2


def test_a_parameter_with_gaps_is_read_anew_each_step():
    p = torch.nn.Parameter(torch.ones(8)[::2])
    optimizer = MaskedSGD([p], lr=0.5)
    for value in (1.0, 2.0, 3.0):
        p.data.fill_(value)
        p.grad = torch.ones(4)
        optimizer.step()
        assert p.tolist() == [value - 0.5] * 4
        assert optimizer._plan is None  # it would keep the dense copy alive


def test_a_parameter_whose_first_step_was_skipped_takes_the_next():
    a, b = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = MaskedSGD([a, b], lr=0.5, momentum=0.9, dampening=0.5)
    a.grad = torch.ones(4)
    optimizer.step()
    a.grad, b.grad = torch.ones(4), torch.ones(4)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert b.tolist() == [0.5] * 4


def test_a_step_like_the_last_gathers_nothing(backend, monkeypatch):
    gathered = []
    monkeypatch.setattr(StepPlan, "__init__", lambda self, *args: gathered.append(1) or original(self, *args))
    params, optimizer = start()
    for step in range(8):
        give_gradients(params, step)
        set_options(optimizer, lr=0.1 / (step + 1))
        optimizer.step()
    assert len(gathered) == 2  # the first step makes the momentum


original = StepPlan.__init__


def test_kernels_are_given_gradients_alone(backend, monkeypatch):
    """Weights of one dtype, some masked, with and without momentum: the plan has the addresses of the rest."""
    for momentum in (0.9, 0.0):
        params, optimizer = start()
        set_options(optimizer, momentum=momentum)
        expected, other = start()
        set_options(other, momentum=momentum)
        for step in range(5):
            for own, each in ((params, optimizer), (expected, other)):
                give_gradients(own, step)
                if each is other:
                    other._plan = None
                elif step > 2 and backend != "reference":  # which keeps no plan
                    monkeypatch.setattr(StepCall, "run", lambda *_: pytest.fail("all lists were passed"))
                each.step()
                monkeypatch.undo()
        assert all(map(bits_equal, everything(params, optimizer), everything(expected, other)))


def test_no_gradient_is_kept_alive(backend):
    params, optimizer = start()
    for step in range(3):
        give_gradients(params, step)
        gradients = [weakref.ref(p.grad) for p in params]
        optimizer.step()
        optimizer.zero_grad()
        gc.collect()
        assert not any(ref() is not None for ref in gradients)


def test_an_error_ends_no_plan_and_changes_nothing(backend):
    params, optimizer = start()
    for step in range(3):
        give_gradients(params, step)
        optimizer.step()
    before = [t.clone() for t in everything(params, optimizer)]
    good = params[3].data
    params[3].data = torch.ones(2, 3, 4, 1).expand(2, 3, 4, 4)
    give_gradients(params, 3)
    with pytest.raises(RuntimeError, match="share memory"):
        optimizer.step()
    params[3].data = good
    assert all(bits_equal(a, b) for a, b in zip(everything(params, optimizer), before, strict=True))
    optimizer.step()
    assert not bits_equal(params[0].detach(), before[0])


def test_a_plan_of_nothing_does_nothing(backend):
    numbers = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}
    flags = {"nesterov": False, "maximize": False, "mask_momentum": True, "dry_run": False}
    nothing = torch.empty(0, dtype=torch.int64)
    assert torch.ops.dsd_kernels.planned_sgd_(nothing, [], **numbers, **flags) is False
