"""P2, P3, P7 at MaskedSGD: pruning, external masks, densify, verify(), odd layouts; bad input changes nothing."""

import copy

import pytest
import torch
from cases import DTYPES, awkward, bits_equal, generator, in_memory_order, normal, stable_sort_keep

from dsd_kernels import MaskedSGD


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))


def step(model, optimizer, seed=0):
    x = torch.randn(8, 10, generator=generator(seed)).to(model[0].weight.device)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_prune_takes_exactly_the_smallest_of_every_matrix(backend, device):
    model = small_model().to(device)
    optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    before = {p: p.detach().clone() for p in model.parameters()}
    optimizer.prune(0.33)
    assert list(optimizer.masks) == [model[0].weight, model[2].weight]
    for p, mask in optimizer.masks.items():
        assert torch.equal(in_memory_order(mask).cpu(), stable_sort_keep(before[p].cpu(), round(0.33 * p.numel())))
        assert bits_equal(p.detach(), torch.where(mask, before[p], 0.0))
        assert not optimizer.state[p]["momentum_buffer"][~mask].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sparse_phase_keeps_its_promise(backend, device, dtype):
    p = torch.nn.Parameter(awkward(4097, dtype).nan_to_num(1.0, 2.0, 3.0).view(17, 241).to(device))
    optimizer = MaskedSGD([p], lr=0.01, momentum=0.9, weight_decay=1e-3, nesterov=True)
    optimizer.prune(0.5)
    mask = optimizer.masks[p]
    assert int((~mask).sum()) == round(0.5 * 4097)
    for i in range(4):
        grad = normal(4097, dtype, seed=i).view(17, 241).to(device)
        p.grad = torch.where(mask, grad, [torch.nan, torch.inf, -torch.inf, -0.0][i])
        optimizer.step()
        optimizer.verify()
    assert torch.equal(optimizer.masks[p], mask)


def test_repruning_starts_from_what_is_pruned_and_writes_in_place():
    p = torch.nn.Parameter(normal(200, torch.float32).view(10, 20))
    optimizer = MaskedSGD([p], lr=0.1)
    optimizer.prune(0.3)
    first, address = optimizer.masks[p], optimizer._masks.bits(p, p).data_ptr()
    optimizer.prune(0.6)
    assert not (optimizer.masks[p] & ~first).any()
    assert optimizer.sparsity().per_parameter[p] == 0.6
    assert optimizer._masks.bits(p, p).data_ptr() == address


def test_densify_lets_weights_train_again_from_zero():
    model = small_model()
    optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.prune(0.5)
    pruned = {p: ~mask for p, mask in optimizer.masks.items()}
    optimizer.densify(model[0].weight)
    assert list(optimizer.masks) == [model[2].weight]
    assert not model[0].weight[pruned[model[0].weight]].any()
    step(model, optimizer)
    assert (model[0].weight[pruned[model[0].weight]] != 0).any()
    assert not model[2].weight[pruned[model[2].weight]].any()
    optimizer.densify()
    assert optimizer.masks == {}
    assert optimizer.sparsity().overall == 0


def test_keep_policy_is_sgd_followed_by_a_mask():
    ours, theirs = (torch.nn.Parameter(normal(65, torch.float32)) for _ in range(2))
    optimizer = MaskedSGD([ours], lr=0.1, momentum=0.9, mask_momentum="keep")
    torch_sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, foreach=False)
    mask = normal(65, torch.float32, seed=1) > 0
    optimizer.set_masks({ours: mask})
    theirs.data *= mask
    for i in range(4):
        ours.grad, theirs.grad = (normal(65, torch.float32, seed=i) for _ in range(2))
        optimizer.step()
        torch_sgd.step()
        theirs.data = torch.where(mask, theirs.data, 0.0)
    assert bits_equal(ours.detach(), theirs.detach())
    assert bits_equal(optimizer.state[ours]["momentum_buffer"], torch_sgd.state[theirs]["momentum_buffer"])
    optimizer.verify()


@pytest.mark.feature("Layouts", "model.to(memory_format=...) between steps")
def test_a_mask_follows_its_weights_into_another_memory_format():
    conv = torch.nn.Conv2d(3, 8, 3, bias=False)
    twin = copy.deepcopy(conv)
    optimizers = [MaskedSGD(m.parameters(), lr=0.1, momentum=0.9) for m in (conv, twin)]
    for i in range(4):
        for module, optimizer in zip((conv, twin), optimizers, strict=True):
            module.weight.grad = normal(216, torch.float32, seed=i).view(8, 3, 3, 3)
            optimizer.step()
            if i == 0:
                optimizer.prune(0.5)
        if i == 1:
            conv.to(memory_format=torch.channels_last)
    assert conv.weight.stride() != twin.weight.stride()
    assert torch.equal(conv.weight, twin.weight)
    assert torch.equal(optimizers[0].masks[conv.weight], optimizers[1].masks[twin.weight])
    assert torch.equal(*(o.state[m.weight]["momentum_buffer"] for o, m in zip(optimizers, (conv, twin), strict=True)))
    optimizers[0].verify()


@pytest.mark.feature("Layouts", "parameters with gaps in memory")
def test_parameters_with_gaps_in_memory_are_served_and_nothing_between_them_is_touched():
    storage = normal(100, torch.float32).view(10, 10)
    before = storage.clone()
    p = torch.nn.Parameter(storage[:, ::2])
    dense = torch.nn.Parameter(storage[:, ::2].clone())
    assert p.data_ptr() == storage.data_ptr()
    for q in (p, dense):
        optimizer = MaskedSGD([q], lr=0.1, momentum=0.9)
        optimizer.prune(0.5)
        for i in range(3):
            q.grad = normal(50, torch.float32, seed=i).view(10, 5)
            optimizer.step()
        optimizer.verify()
        assert optimizer.sparsity().overall == 0.5
    assert torch.equal(p, dense)
    assert bits_equal(storage[:, 1::2], before[:, 1::2])


@pytest.mark.feature("Dtypes", "several dtypes in one optimizer")
def test_parameters_of_several_dtypes_and_masked_or_not_in_one_optimizer():
    params = [torch.nn.Parameter(normal(65, dtype).view(5, 13)) for dtype in DTYPES for _ in range(2)]
    optimizer = MaskedSGD(params, lr=0.1, momentum=0.9)
    optimizer.prune(dict.fromkeys(params[::2], 0.4))
    for i in range(3):
        for p in params:
            p.grad = normal(65, p.dtype, seed=i).view(5, 13)
        optimizer.step()
    assert list(optimizer.masks) == params[::2]
    assert all(row.n_pruned == 26 for row in optimizer.verify().rows)


def test_new_masks_are_written_where_the_old_ones_were():
    p = torch.nn.Parameter(normal(64, torch.float32))
    optimizer = MaskedSGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.ones(64)
    optimizer.step()
    buffer = optimizer.state[p]["momentum_buffer"]
    optimizer.set_masks({p: p.detach() > 0})
    address, state = optimizer._masks.bits(p, p).data_ptr(), optimizer.state_dict()
    optimizer.set_masks({p: p.detach() > 0.5})
    assert optimizer.state[p]["momentum_buffer"] is buffer
    optimizer.load_state_dict(state)
    assert optimizer._masks.bits(p, p).data_ptr() == address
    assert torch.equal(optimizer.masks[p], state["state"][0]["mask"])


def test_a_mask_does_not_fit_another_shape():
    p = torch.nn.Parameter(torch.ones(8))
    optimizer = MaskedSGD([p], lr=0.1)
    optimizer.prune(0.5, p)
    p.data = torch.ones(5)
    p.grad = torch.ones(5)
    with pytest.raises(ValueError, match=r"shape \(8,\).*got \(5,\)"):
        optimizer.step()


@pytest.mark.feature("Arguments", "removing a group")
def test_a_removed_group_takes_its_masks_along():
    a, b = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = MaskedSGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    optimizer.prune(0.5)
    del optimizer.param_groups[1]
    assert list(optimizer.masks) == [a]
    assert optimizer.sparsity().masked == 0.5
    assert len(optimizer.verify().rows) == 1
    optimizer.densify()


@pytest.mark.feature("Arguments", "torch.set_default_device")
def test_the_default_device_does_not_matter():
    p = torch.nn.Parameter(torch.arange(1.0, 9.0).view(2, 4))
    with torch.device("meta"):
        optimizer = MaskedSGD([p], lr=0.1)
        optimizer.prune(0.5)
    assert optimizer.masks[p].tolist() == [[False] * 4, [True] * 4]


def test_verify_reports_what_is_broken_by_name():
    model = small_model()
    optimizer = MaskedSGD(model.named_parameters(), lr=0.1, momentum=0.9)
    assert str(optimizer.verify()) == "no parameter has a mask"
    optimizer.prune(0.5)
    step(model, optimizer)
    with torch.no_grad():
        model[0].weight[~optimizer.masks[model[0].weight]] = -0.0
        optimizer.state[model[2].weight]["momentum_buffer"].fill_(1.0)
    with pytest.raises(RuntimeError) as raised:
        optimizer.verify()
    assert "0.weight: 100 pruned weights are not +0.0" in str(raised.value)
    assert "2.weight: 30 pruned weights have momentum" in str(raised.value)


def test_verify_counts_values_that_are_not_finite():
    p = torch.nn.Parameter(torch.tensor([[1.0, torch.nan], [torch.inf, 2.0]]))
    optimizer = MaskedSGD([p], lr=0.1)
    optimizer.prune(0.5)
    assert torch.equal(optimizer.masks[p], torch.tensor([[False, True], [True, False]]))
    assert optimizer.verify().rows[0].n_nonfinite == 2


def test_verify_finds_a_damaged_mask():
    p = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = MaskedSGD([p], lr=0.1)
    optimizer.prune(0.5)
    optimizer._masks.bits(p, p)[-1] = 1
    with pytest.raises(RuntimeError, match="padding"):
        optimizer.verify()


def test_sparsity_is_a_readable_report():
    model = small_model()
    optimizer = MaskedSGD(model.named_parameters(), lr=0.1)
    optimizer.prune(0.5, [model[0].weight])
    report = optimizer.sparsity()
    assert report.overall == 100 / 283
    assert report.masked == 0.5
    assert report.per_parameter[model[2].weight] == 0
    assert "0.weight           (20, 10)    0.5000" in str(report)


foreign = torch.nn.Parameter(torch.ones(3, 3))

BAD_CALLS = {
    "sparsity negative": (lambda o, p: o.prune(-0.1), ValueError, r"sparsity: expected a number in \[0, 1\), got -0.1"),
    "sparsity one": (lambda o, p: o.prune(1.0), ValueError, r"sparsity: expected a number in \[0, 1\), got 1.0"),
    "sparsity nan": (lambda o, p: o.prune(float("nan")), ValueError, r"sparsity: expected.*got nan"),
    "sparsity a string": (
        lambda o, p: o.prune("half"),
        TypeError,
        r"sparsity: expected a number in \[0, 1\), got 'half'",
    ),
    "one bad sparsity of two": (lambda o, p: o.prune({p[0]: 0.5, p[1]: 2}), ValueError, r"sparsity of params\[1\]"),
    "dict and params": (lambda o, p: o.prune({p[0]: 0.5}, p), ValueError, "params: expected None beside a dict"),
    "foreign parameter": (lambda o, p: o.prune(0.5, [p[0], foreign]), ValueError, r"another of shape \(3, 3\)"),
    "no parameter": (lambda o, p: o.prune(0.5, ["weight"]), TypeError, "params: expected a parameter.*got str"),
    "integer parameter": (
        lambda o, p: o.prune(0.5, [p[0], p[2]]),
        TypeError,
        r"params\[2\].* is torch.int64 in layout",
    ),
    "mask of another shape": (
        lambda o, p: o.set_masks({p[0]: p[0] > 0, p[1]: torch.ones(2, 2) > 0}),
        ValueError,
        r"masks: expected shape \(4, 4\) for params\[1\] of param_groups\[0\], got \(2, 2\)",
    ),
    "mask of another dtype": (lambda o, p: o.set_masks({p[0]: p[0].detach()}), TypeError, "expected dtype torch.bool"),
    "mask on another device": (
        lambda o, p: o.set_masks({p[0]: torch.ones(4, 4, device="meta") > 0}),
        ValueError,
        "masks: expected device cpu .*, got meta",
    ),
    "mask no tensor": (
        lambda o, p: o.set_masks({p[0]: [[1]]}),
        TypeError,
        "masks: expected a bool tensor for .*, got list",
    ),
    "mask of a foreign parameter": (lambda o, p: o.set_masks({foreign: foreign > 0}), ValueError, "parameters of this"),
    "one sparse mask of two": (
        lambda o, p: o.set_masks({p[1]: p[1] > 0, p[0]: (p[0] > 0).to_sparse()}),
        TypeError,
        "expected dtype torch.bool for .* in layout torch.sparse_coo",
    ),
    "params no list": (lambda o, p: o.prune(0.5, 5), TypeError, "params: expected a parameter or a list"),
    "names for parameters": (lambda o, p: o.prune({"w": 0.5}), TypeError, "sparsity: expected a parameter.*got str"),
    "masks no dict": (lambda o, p: o.set_masks([p[0] > 0]), TypeError, "masks: expected a dict"),
    "densify a foreign parameter": (
        lambda o, p: o.densify([p[0], foreign]),
        ValueError,
        "parameters of this optimizer",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_one_clear_error_and_changes_nothing(case):
    call, error, text = BAD_CALLS[case]
    params = [torch.nn.Parameter(normal(16, torch.float32, seed=i).view(4, 4)) for i in range(2)]
    integer = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int64), requires_grad=False)
    optimizer = MaskedSGD([*params, integer], lr=0.1, momentum=0.9)
    optimizer.prune(0.25, params[:1])
    weights, masks = [p.detach().clone() for p in params], optimizer.masks
    with pytest.raises(error, match=text) as raised:
        call(optimizer, [*params, integer])
    assert "\n" not in str(raised.value)
    assert list(optimizer.masks) == list(masks)
    assert all(torch.equal(optimizer.masks[p], masks[p]) for p in masks)
    assert all(bits_equal(p.detach(), w) for p, w in zip(params, weights, strict=True))
