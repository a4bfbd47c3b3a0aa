"""Options for bfloat16 and float16 weights: float32 momentum, float32 master weights, stochastic rounding."""

import copy
import io
import pickle

import pytest
import torch
from cases import OPTIONS, bits_equal, normal, option_id

from dsd_kernels import MaskedSGD

HALVES = (torch.bfloat16, torch.float16)
SIZES = (0, 1, 63, 65, 1000)
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}


def half_parameters(dtype=torch.bfloat16, device="cpu", sizes=SIZES):
    return [torch.nn.Parameter(normal(n, dtype, seed=n).to(device)) for n in sizes]


def set_gradients(params, step, dtype=None):
    for p in params:
        grad = normal(p.numel(), p.dtype, seed=100 * step + p.numel() % 97).view(p.shape).to(p.device)
        if dtype is not None:
            p.grad_dtype = dtype
        p.grad = grad.to(dtype)


def run(optimizer, steps, dtype=None):
    for step in steps:
        set_gradients([p for group in optimizer.param_groups for p in group["params"]], step, dtype)
        optimizer.step()


def wide_twins(params):
    return [torch.nn.Parameter(p.detach().float()) for p in params]


def some_masks(params):
    return {p: normal(p.numel(), torch.float32, seed=7).view(p.shape).to(p.device) > 0 for p in params}


def through_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.feature("Dtypes", "float32 momentum of bfloat16 and float16 weights (momentum_dtype)")
@pytest.mark.parametrize("options", [o for o in OPTIONS if o["momentum"]], ids=option_id)
@pytest.mark.parametrize("dtype", HALVES)
def test_wide_momentum_is_float32_sgd_with_weights_rounded_once_a_step(backend, device, dtype, options):
    ours = half_parameters(dtype, device)
    theirs = wide_twins(ours)
    optimizer = MaskedSGD(ours, lr=0.1, momentum_dtype=torch.float32, **options)
    reference = torch.optim.SGD(theirs, lr=0.1, foreach=False, **options)
    for step in range(4):
        set_gradients(ours, step)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.float()
        optimizer.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            q.data = q.data.to(dtype).float()
            assert bits_equal(p.detach(), q.detach().to(dtype))
            assert bits_equal(optimizer.state[p]["momentum_buffer"], reference.state[q]["momentum_buffer"])


@pytest.mark.feature("Dtypes", "float32 master weights with half-precision copies (master_weights)")
@pytest.mark.feature("Dtypes", "masks on master weights and their copies")
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
@pytest.mark.parametrize("dtype", HALVES)
def test_master_weights_are_float32_sgd_and_parameters_their_rounding(backend, device, dtype, options, masked):
    ours = half_parameters(dtype, device)
    optimizer = MaskedSGD(ours, lr=0.1, master_weights=True, **options)
    masks = some_masks(ours) if masked else {}
    optimizer.set_masks(masks)
    theirs = wide_twins(ours)
    reference = torch.optim.SGD(theirs, lr=0.1, foreach=False, **options)
    for step in range(4):
        set_gradients(ours, step)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.float()
        optimizer.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            if masked:
                q.data = torch.where(masks[p], q.data, 0.0)
                for buffer in reference.state[q].values():
                    buffer.copy_(torch.where(masks[p], buffer, 0.0))
            assert bits_equal(optimizer.state[p]["master_weight"], q.detach())
            assert bits_equal(p.detach(), q.detach().to(dtype))
    optimizer.verify()


@pytest.mark.feature("Dtypes", "float32 gradients of half-precision weights, with the options for those")
@pytest.mark.parametrize("options", [{"master_weights": True}, {"momentum_dtype": torch.float32}], ids=str)
def test_a_gradient_may_be_wider_than_its_weight(backend, device, options):
    narrow, wide = half_parameters(device=device), half_parameters(device=device)
    run(MaskedSGD(narrow, **SGD, **options), range(3))
    run(MaskedSGD(wide, **SGD, **options), range(3), dtype=torch.float32)
    assert all(bits_equal(p.detach(), q.detach()) for p, q in zip(narrow, wide, strict=True))


OPTIONS_OF_HALVES = {
    "momentum": {"momentum_dtype": torch.float32},
    "masters": {"master_weights": True},
    "stochastic": {"stochastic_rounding": True, "rounding_seed": 5},
    "stochastic, wide momentum": {"stochastic_rounding": True, "momentum_dtype": torch.float32},
}


@pytest.mark.feature("State", "half-precision options (masters, wide momentum, rounding seed) in state dicts")
@pytest.mark.parametrize("trip", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), through_file])
@pytest.mark.parametrize("options", OPTIONS_OF_HALVES.values(), ids=OPTIONS_OF_HALVES)
def test_resume_is_bitwise_the_run_that_never_stopped(options, trip):
    def start():
        params = half_parameters()
        optimizer = MaskedSGD(params, **SGD, **options)
        optimizer.prune(0.5, params)
        return params, optimizer

    straight, optimizer = start()
    run(optimizer, range(6))
    stopped, optimizer = start()
    run(optimizer, range(3))
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in stopped]
    loaded = MaskedSGD(resumed, lr=0.3)  # what the state dict says counts
    loaded.load_state_dict(trip(optimizer.state_dict()))
    for p, q in zip(stopped, resumed, strict=True):
        for key, value in optimizer.state[p].items():
            assert bits_equal(loaded.state[q][key], value)
    run(loaded, range(3, 6))
    assert all(bits_equal(p.detach(), q.detach()) for p, q in zip(straight, resumed, strict=True))


@pytest.mark.feature("State", "half-precision options (masters, wide momentum, rounding seed) in state dicts")
@pytest.mark.parametrize("options", OPTIONS_OF_HALVES.values(), ids=OPTIONS_OF_HALVES)
def test_a_copied_optimizer_goes_on_as_the_original(options):
    params = half_parameters()
    optimizer = MaskedSGD(params, **SGD, **options)
    run(optimizer, range(2))
    copied = copy.deepcopy(optimizer)
    run(optimizer, range(2, 4))
    run(copied, range(2, 4))
    for p, q in zip(params, copied.param_groups[0]["params"], strict=True):
        assert bits_equal(p.detach(), q.detach())


def test_a_state_of_torchs_sgd_is_widened_and_goes_back():
    ours, theirs = half_parameters(), half_parameters()
    stock = torch.optim.SGD(theirs, **SGD, foreach=False)
    run(stock, range(2))
    optimizer = MaskedSGD(ours, **SGD, master_weights=True)
    optimizer.load_state_dict(stock.state_dict())
    for p, q in zip(ours, theirs, strict=True):
        assert bits_equal(optimizer.state[p]["momentum_buffer"], stock.state[q]["momentum_buffer"].float())
    run(optimizer, [2])
    stock.load_state_dict(optimizer.state_dict())
    for p, q in zip(ours, theirs, strict=True):
        assert bits_equal(stock.state[q]["momentum_buffer"], optimizer.state[p]["momentum_buffer"].to(p.dtype))


def write_from_numpy(p, values):
    p.detach().view(torch.int16).numpy()[:] = values.view(torch.int16).numpy()


def swap_in(p, values):
    p.data = values.clone()


WRITES = {
    "copy_": lambda p, values: p.detach().copy_(values),
    "data.copy_": lambda p, values: p.data.copy_(values),
    "data": swap_in,
    "vector_to_parameters": lambda p, values: torch.nn.utils.vector_to_parameters(values, [p]),
    "numpy": write_from_numpy,
}


@pytest.mark.feature("Dtypes", "weights written by others, in whatever way, reach their masters")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("then", ["step", "prune"])
def test_the_master_takes_what_others_write_and_keeps_what_they_leave(write, then):
    p = torch.nn.Parameter(normal(65, torch.bfloat16))
    optimizer = MaskedSGD([p], lr=0.01, master_weights=True)
    run(optimizer, range(4))
    master = optimizer.state[p]["master_weight"].clone()
    assert not torch.equal(master, p.float())
    values = p.detach().clone()
    values[7] = 3.0
    write(p, values)
    p.grad = torch.zeros_like(p)
    optimizer.step() if then == "step" else optimizer.prune(0.0, p)
    after = optimizer.state[p]["master_weight"]
    untouched = torch.arange(65) != 7
    assert after[7] == p[7] == 3.0
    assert bits_equal(after[untouched], master[untouched])


def test_verify_looks_at_masters_only_where_they_serve():
    model = torch.nn.Linear(8, 8).bfloat16()
    optimizer = MaskedSGD(model.parameters(), lr=0.1, master_weights=True)
    run(optimizer, [0])
    model.float()
    run(optimizer, [1])
    optimizer.prune(0.5)
    run(optimizer, [2])
    optimizer.verify()


@pytest.mark.feature("Dtypes", "another precision in mid-run (model.half(), model.float(), ...)")
@pytest.mark.parametrize("options", OPTIONS_OF_HALVES.values(), ids=OPTIONS_OF_HALVES)
@pytest.mark.parametrize("first", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("then", [*HALVES, torch.float32, torch.float64])
def test_precision_may_change_in_mid_run(options, first, then):
    model = torch.nn.Linear(8, 8).to(first)
    optimizer = MaskedSGD(model.parameters(), **SGD, **options)
    run(optimizer, range(2))
    model.to(then)
    run(optimizer, range(2, 5))
    assert model.weight.dtype == then
    assert model.weight.isfinite().all()


@pytest.mark.feature("State", "options of a group when a state dict of torch.optim.SGD is loaded")
def test_groups_keep_their_own_options_when_the_state_says_nothing_of_them():
    a, b = half_parameters(sizes=(33, 65))
    groups = [{"params": [a], "momentum_dtype": torch.float32, "mask_momentum": "keep"}, {"params": [b]}]
    optimizer = MaskedSGD(groups, **SGD)
    others = half_parameters(sizes=(33, 65))
    stock = torch.optim.SGD([{"params": [q]} for q in others], **SGD)
    run(stock, range(2))
    optimizer.load_state_dict(stock.state_dict())
    assert optimizer.param_groups[0]["momentum_dtype"] == torch.float32
    assert optimizer.param_groups[0]["mask_momentum"] == "keep"
    assert optimizer.param_groups[1]["momentum_dtype"] is None
    assert [optimizer.state[p]["momentum_buffer"].dtype for p in (a, b)] == [torch.float32, torch.bfloat16]


def test_pruning_selects_by_master_weights():
    p = torch.nn.Parameter(torch.tensor([1.0, 1.0, 2.0, 3.0], dtype=torch.bfloat16))
    optimizer = MaskedSGD([p], lr=1.0, master_weights=True)
    p.grad = torch.tensor([-1e-4, 1e-4, 0.0, 0.0], dtype=torch.bfloat16)
    optimizer.step()
    assert p[0] == p[1] == 1.0
    optimizer.prune(0.25, p)
    assert optimizer.masks[p].tolist() == [True, False, True, True]
    assert p.tolist() == [1.0, 0.0, 2.0, 3.0]
    assert optimizer.state[p]["master_weight"][1] == 0.0
    assert optimizer.state[p]["master_weight"][0] > 1.0
    optimizer.verify()
    optimizer.state[p]["master_weight"][1] = 0.5
    with pytest.raises(RuntimeError, match=r"1 pruned weights have master weights that are not \+0.0"):
        optimizer.verify()


@pytest.mark.parametrize("options", [{"master_weights": True}, {"momentum_dtype": torch.float32}], ids=str)
def test_any_layout_gives_the_same_numbers(options):
    plain = torch.nn.Parameter(normal(216, torch.bfloat16).view(2, 3, 6, 6))
    moved = torch.nn.Parameter(plain.detach().clone())
    storage = torch.zeros(2, 3, 6, 12, dtype=torch.bfloat16)
    gaps = torch.nn.Parameter(storage[..., ::2].copy_(plain.detach()))
    params = [plain, moved, gaps]
    optimizers = [MaskedSGD([p], **SGD, **options) for p in params]
    for step in range(4):
        if step == 2:
            moved.data = moved.data.contiguous(memory_format=torch.channels_last)
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = normal(216, torch.bfloat16, seed=step).view(2, 3, 6, 6)
            if step == 1:
                optimizer.prune(0.5)
            optimizer.step()
    assert bits_equal(plain.detach(), moved.detach().contiguous())
    assert bits_equal(plain.detach(), gaps.detach().contiguous())
    assert not storage[..., 1::2].any()
    for optimizer in optimizers:
        optimizer.verify()


@pytest.mark.feature("Dtypes", "stochastic rounding of half-precision weights, seeded")
@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_is_reproducible_and_depends_on_its_seed(backend, device, dtype):
    runs = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        params = half_parameters(dtype, device)
        run(MaskedSGD(params, **SGD, stochastic_rounding=True, rounding_seed=seed), range(3))
        runs[name] = torch.cat([p.detach() for p in params])
    assert bits_equal(runs["first"], runs["again"])
    assert not bits_equal(runs["first"], runs["other"])


@pytest.mark.feature("Dtypes", "stochastic rounding of half-precision weights, seeded")
def test_small_updates_are_lost_to_nearest_rounding_and_not_to_stochastic():
    n, steps = 4096, 16
    means = {}
    for stochastic in (False, True):
        p = torch.nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
        optimizer = MaskedSGD([p], lr=2.0**-11, stochastic_rounding=stochastic)
        for _ in range(steps):
            p.grad = -torch.ones_like(p)
            optimizer.step()
        means[stochastic] = p.detach().double().mean().item()
    assert means[False] == 1.0
    # each step adds 2^-7 with probability 1/16: a binomial of n * steps draws, within six standard deviations
    deviation = 2.0**-7 * (steps * (1 / 16) * (15 / 16) / n) ** 0.5
    assert abs(means[True] - (1 + steps * 2.0**-11)) < 6 * deviation


def test_parameters_groups_and_calls_draw_different_bits():
    params = [torch.nn.Parameter(torch.full((512,), 1.0, dtype=torch.bfloat16)) for _ in range(4)]
    optimizer = MaskedSGD(
        [{"params": params[:2]}, {"params": params[2:]}], lr=2.0**-8, stochastic_rounding=True, rounding_seed=3
    )
    optimizer.set_masks({params[1]: torch.ones(512, dtype=torch.bool)})  # a call of its own
    for p in params:
        p.grad = -torch.ones_like(p)
    optimizer.step()
    assert len({tuple(p.tolist()) for p in params}) == 4


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
def test_a_step_of_rate_zero_draws_nothing(lr):
    params = half_parameters()
    optimizer = MaskedSGD(params, lr=lr, stochastic_rounding=True, rounding_seed=9)
    before = [p.detach().clone() for p in params]
    run(optimizer, [0])
    assert optimizer.param_groups[0]["rounding_seed"] == 9
    assert all(bits_equal(p.detach(), q) for p, q in zip(params, before, strict=True))


@pytest.mark.feature("Mixed precision", "a skipped step with master weights or stochastic rounding changes nothing")
@pytest.mark.parametrize("options", OPTIONS_OF_HALVES.values(), ids=OPTIONS_OF_HALVES)
def test_a_skipped_step_leaves_no_trace(options):
    skipping, straight = half_parameters(), half_parameters()
    optimizer = MaskedSGD(skipping, **SGD, **options)
    optimizer.found_inf = torch.tensor(1.0)
    run(optimizer, [5])
    optimizer.found_inf = torch.tensor(0.0)
    run(optimizer, range(2))
    run(MaskedSGD(straight, **SGD, **options), range(2))
    assert all(bits_equal(p.detach(), q.detach()) for p, q in zip(skipping, straight, strict=True))


@pytest.mark.feature("Dtypes", "options for half-precision weights leave float32 and float64 weights alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS_OF_HALVES.values(), ids=OPTIONS_OF_HALVES)
def test_wider_parameters_are_updated_as_ever(dtype, options):
    ours, theirs = (torch.nn.Parameter(normal(65, dtype)) for _ in range(2))
    optimizer = MaskedSGD([ours], **SGD, **options)
    run(optimizer, range(3))
    run(torch.optim.SGD([theirs], **SGD, foreach=False), range(3))
    assert bits_equal(ours.detach(), theirs.detach())
    assert list(optimizer.state[ours]) == ["momentum_buffer"]
    assert optimizer.state[ours]["momentum_buffer"].dtype == dtype


def test_options_differ_by_group_and_wait_for_the_first_gradient():
    a, b, c = half_parameters(sizes=(33, 33, 33))
    optimizer = MaskedSGD([{"params": [a], "master_weights": True}, {"params": [b]}], **SGD)
    optimizer.add_param_group({"params": [c], "momentum_dtype": torch.float32})
    set_gradients([a, b], 0)
    optimizer.step()
    assert sorted(optimizer.state[a]) == ["master_weight", "momentum_buffer"]
    assert optimizer.state[b]["momentum_buffer"].dtype == torch.bfloat16
    assert c not in optimizer.state
    set_gradients([c], 0)
    optimizer.step()
    assert optimizer.state[c]["momentum_buffer"].dtype == torch.float32


@pytest.mark.feature("Dtypes", "sparse gradients with the options for half precision", answer="refused")
@pytest.mark.parametrize("options", OPTIONS_OF_HALVES.values(), ids=OPTIONS_OF_HALVES)
def test_what_only_torchs_loop_can_do_is_refused(options):
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MaskedSGD([p], lr=0.1, **options)
    p.grad = torch.ones(4, dtype=torch.bfloat16).to_sparse()
    with pytest.raises(RuntimeError, match=f"{next(iter(options))}.* does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p))
    assert p not in optimizer.state


BAD = {
    "momentum_dtype": (
        {"momentum_dtype": torch.bfloat16},
        ValueError,
        "momentum_dtype: expected None or torch.float32",
    ),
    "momentum_dtype text": ({"momentum_dtype": "float32"}, ValueError, "got 'float32'"),
    "master_weights": ({"master_weights": 1}, TypeError, "master_weights: expected True or False, got 1"),
    "stochastic_rounding": ({"stochastic_rounding": "yes"}, TypeError, "expected True or False, got 'yes'"),
    "both": ({"stochastic_rounding": True, "master_weights": True}, ValueError, "expected False with master_weights"),
    "seed": ({"rounding_seed": 0.5}, TypeError, "rounding_seed: expected an int or an int64 tensor, got 0.5"),
    "seed too large": ({"rounding_seed": 2**63}, ValueError, "expected an integer of 64 bits"),
    "seed tensor": ({"rounding_seed": torch.tensor(3)}, TypeError, r"expected an int, got tensor\(3\)"),
    "full_state_dict": ({"full_state_dict": None}, TypeError, "full_state_dict: expected True or False, got None"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_options_are_one_clear_error(case):
    options, error, text = case
    p, q = half_parameters(sizes=(4, 4))
    with pytest.raises(error, match=text):
        MaskedSGD([p], lr=0.1, **options)
    with pytest.raises(error, match=text):
        MaskedSGD([{"params": [p], **options}], lr=0.1)
    optimizer = MaskedSGD([p], lr=0.1)
    with pytest.raises(error, match=text):
        optimizer.add_param_group({"params": [q], **options})
    assert len(optimizer.param_groups) == 1
