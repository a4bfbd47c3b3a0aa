"""MaskedSGD stepping inside backward, as docs/optimizer_in_backward.md says: the same bits, one gradient at a time."""

import copy
import doctest
from pathlib import Path

import pytest
import torch
from cases import bits_equal
from side_by_side import batch, masked_or_not, small_model, some_masks, train_model
from torch.multiprocessing.reductions import StorageWeakRef

from dsd_kernels import MaskedSGD
from dsd_kernels.flows import DSD

OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}


def tied_model():
    model = small_model()
    torch.manual_seed(1)
    tied = torch.nn.Linear(20, 20)
    return torch.nn.Sequential(model[0], tied, torch.nn.Tanh(), tied, model[2])


def one_each(model):
    return {p: MaskedSGD([p], **OPTIONS) for p in model.parameters()}


def one_for_all(model):
    return dict.fromkeys(model.parameters(), MaskedSGD(model.parameters(), **OPTIONS))


def step_in_backward(optimizers):
    def step_and_free(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step_and_free)


def train_in_backward(model, n_steps=4):
    for step in range(n_steps):
        model(batch(step)).square().mean().backward()
        assert all(p.grad is None for p in model.parameters())


def assert_same_weights(model, other):
    assert all(bits_equal(p.detach(), q.detach()) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.feature("Optimizer in backward", "one MaskedSGD per parameter, or one stepped by each hook")
@masked_or_not
@pytest.mark.parametrize("assign", [one_each, one_for_all])
@pytest.mark.parametrize("make_model", [small_model, tied_model])
def test_the_weights_are_those_of_a_step_after_backward(make_model, assign, masked):
    inside, after = make_model(), make_model()
    optimizers, optimizer = assign(inside), MaskedSGD(after.parameters(), **OPTIONS)
    if masked:
        for p, mask in some_masks(inside.parameters()).items():
            optimizers[p].set_masks({p: mask})
        optimizer.set_masks(some_masks(after.parameters()))
    step_in_backward(optimizers)
    train_in_backward(inside)
    train_model(optimizer, after)
    assert_same_weights(inside, after)
    for p, q in zip(inside.parameters(), after.parameters(), strict=True):
        assert bits_equal(optimizers[p].state[p]["momentum_buffer"], optimizer.state[q]["momentum_buffer"])
        optimizers[p].verify()


@pytest.mark.feature("Optimizer in backward", "prune and densify between backward passes")
@pytest.mark.parametrize("assign", [one_each, one_for_all])
def test_pruning_between_backward_passes_is_that_of_one_optimizer(assign):
    inside, after = small_model(), small_model()
    optimizers, optimizer = assign(inside), MaskedSGD(after.parameters(), **OPTIONS)
    step_in_backward(optimizers)
    for change in (lambda o: o.prune(0.4), lambda o: o.prune(0.7), lambda o: o.densify()):
        for each in set(optimizers.values()):
            change(each)
        change(optimizer)
        train_in_backward(inside)
        train_model(optimizer, after)
        masks = [optimizers[p].masks.get(p) for p in inside.parameters()]
        for mask, q in zip(masks, after.parameters(), strict=True):
            expected = optimizer.masks.get(q)
            assert (mask is None) == (expected is None)
            assert mask is None or torch.equal(mask, expected)
    assert_same_weights(inside, after)


def live_gradients(model, train):
    """How many gradients are in memory, at each moment at which one has become complete."""
    storages, counts = [], []

    def count(p):
        storages.append(StorageWeakRef(p.grad.untyped_storage()))
        counts.append(sum(not storage.expired() for storage in storages))

    handles = [p.register_post_accumulate_grad_hook(count) for p in model.parameters()]
    train(model)
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.feature("Optimizer in backward", "one gradient in memory at a time")
def test_there_is_one_gradient_at_a_time():
    def backward(model):
        model(batch()).square().mean().backward()

    model = small_model()
    assert live_gradients(model, backward) == [1, 2, 3, 4]
    model.zero_grad()
    optimizers = one_each(model)
    for p in model.parameters():
        optimizers[p].prune(0.5, p)

    def backward_with_steps(model):
        step_in_backward(optimizers)  # these hooks run after those that count
        backward(model)

    assert live_gradients(model, backward_with_steps) == [1, 1, 1, 1]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.feature("Optimizer in backward", "state dicts, one per parameter")
def test_resuming_from_one_state_dict_per_parameter_is_the_run_that_never_stopped():
    model = small_model()
    optimizers = one_each(model)
    step_in_backward(optimizers)
    train_in_backward(model)
    for optimizer in optimizers.values():
        optimizer.prune(0.5)
    train_in_backward(model)
    state = {name: optimizers[p].state_dict() for name, p in model.named_parameters()}
    resumed = small_model()
    resumed.load_state_dict(model.state_dict())
    fresh = {p: MaskedSGD([p], lr=0.7) for p in resumed.parameters()}
    for name, p in resumed.named_parameters():
        fresh[p].load_state_dict(copy.deepcopy(state[name]))
    step_in_backward(fresh)
    train_in_backward(model)
    train_in_backward(resumed)
    assert_same_weights(resumed, model)
    assert [fresh[p].sparsity().overall for p in resumed.parameters()] == [0.5, 0, 0.5, 0]


@pytest.mark.feature("Optimizer in backward", "a learning rate scheduler per optimizer")
def test_a_scheduler_per_optimizer_is_one_scheduler_over_all():
    def schedule(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=8)

    inside, after = small_model(), small_model()
    optimizers, optimizer = one_each(inside), MaskedSGD(after.parameters(), **OPTIONS)
    step_in_backward(optimizers)
    schedulers, scheduler = [schedule(each) for each in optimizers.values()], schedule(optimizer)
    for _ in range(5):
        train_in_backward(inside, 1)
        train_model(optimizer, after, 1)
        for each in [*schedulers, scheduler]:
            each.step()
    assert_same_weights(inside, after)


@pytest.mark.feature("Optimizer in backward", "a flow that drives one optimizer stepped by each hook")
def test_a_flow_drives_one_optimizer_stepped_by_each_hook():
    inside, after = small_model(), small_model()
    optimizers, optimizer = one_for_all(inside), MaskedSGD(after.parameters(), **OPTIONS)
    step_in_backward(optimizers)
    pairs = (optimizers[inside[0].weight], inside), (optimizer, after)
    lengths = {"dense": 1, "sparse": 2, "redense": 1, "sparsity": 0.5, "unit": "step", "min_weights": 0}
    flows = [DSD(each, model, **lengths) for each, model in pairs]
    n_zero = []
    for _ in range(4):
        train_in_backward(inside, 1)
        train_model(optimizer, after, 1)
        assert_same_weights(inside, after)
        n_zero.append(int((inside[0].weight == 0).sum()))
        for flow in flows:
            flow.step()
    assert n_zero[:3] == [0, 100, 100]
    assert n_zero[3] < 100
    assert all(flow.finished for flow in flows)


def test_the_documented_example_runs():
    document = Path(__file__).parent.parent / "docs" / "optimizer_in_backward.md"
    result = doctest.testfile(str(document), module_relative=False)
    assert result.attempted > 8
    assert result.failed == 0
