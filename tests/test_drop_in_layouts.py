"""P1: however parameters and gradients lie in memory, the step is torch's; what shares memory is refused whole."""

import pytest
import torch
from cases import bits_equal, generator, normal
from side_by_side import masked_or_not, side_by_side, take_steps

from dsd_kernels import MaskedSGD

SHAPE = (6, 5, 3, 7)  # odd, so that nothing is contiguous by accident

LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "non-contiguous": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "sliced": lambda t: torch.cat([t, t], dim=1)[:, : t.shape[1]],
}
GRADIENTS = LAYOUTS | {
    "expanded": lambda t: t[:1, :, :1].expand(SHAPE),
    "expanded scalar": lambda t: t[0, 0, 0, 0].expand(SHAPE),
}


def random_tensor(seed):
    return torch.randn(SHAPE, generator=generator(seed))


def steps_with(layout):
    def train(optimizer, params):
        for step in range(3):
            for p in params:
                p.grad = GRADIENTS[layout](random_tensor(step + 1))
            before = [p.grad.clone() for p in params]
            optimizer.step()
            assert all(bits_equal(p.grad, grad) for p, grad in zip(params, before, strict=True))  # never written

    return train


@pytest.mark.feature("Layouts", "channels_last, transposed and non-contiguous parameters")
@pytest.mark.feature("Layouts", "gradients in another layout than their parameter, also expanded")
@masked_or_not
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("parameter", LAYOUTS)
def test_every_layout_of_gradients_meets_every_layout_of_parameters(parameter, gradient, masked):
    side_by_side(
        steps_with(gradient),
        lambda: [torch.nn.Parameter(LAYOUTS[parameter](random_tensor(0))) for _ in range(2)],
        masked,
        momentum=0.9,
        weight_decay=0.01,
        nesterov=True,
    )


@pytest.mark.feature("Layouts", "pruning in every layout of parameters")
@pytest.mark.parametrize("parameter", LAYOUTS)
def test_a_step_after_prune_keeps_the_zeros_in_every_layout(parameter):
    p = torch.nn.Parameter(LAYOUTS[parameter](random_tensor(0)))
    before, stride = p.detach().clone(), p.stride()
    optimizer = MaskedSGD([p], lr=0.1, momentum=0.9)
    optimizer.prune(0.4)
    threshold = before.abs().flatten().sort().values[round(0.4 * p.numel())]  # the values are distinct
    assert torch.equal(optimizer.masks[p], before.abs() >= threshold)
    steps_with("expanded")(optimizer, [p])
    assert not p[~optimizer.masks[p]].any()
    assert p.stride() == stride
    optimizer.verify()


def test_a_gradient_and_momentum_keep_up_when_the_layout_changes_between_steps():
    def train(optimizer, params):
        for gradient in GRADIENTS:
            steps_with(gradient)(optimizer, params)
            for p in params:
                p.data = LAYOUTS["channels_last" if p.is_contiguous() else "contiguous"](p.data)

    side_by_side(train, lambda: [torch.nn.Parameter(random_tensor(0)) for _ in range(2)], masked=True, momentum=0.9)


SENTINEL = 12345.0
SIZES = (33, 1, 64, 0, 1000, 7)


def views_of_one_buffer(gap):
    """Parameters that lie side by side in one buffer, with sentinels between them."""
    buffer = torch.full((sum(SIZES) + gap * (len(SIZES) + 1),), SENTINEL)
    params, start = [], gap
    for n in SIZES:
        buffer[start : start + n] = normal(n, torch.float32, seed=n)
        params.append(torch.nn.Parameter(buffer[start : start + n]))
        start += n + gap
    return buffer, params


@pytest.mark.feature("Layouts", "parameters that are views of one buffer")
@masked_or_not
@pytest.mark.parametrize("gap", [0, 3])
def test_views_of_one_buffer_are_stepped_and_nothing_beside_them(gap, masked):
    buffers = []

    def make_views():
        buffer, params = views_of_one_buffer(gap)
        buffers.append(buffer)
        return params

    def train(optimizer, params):
        take_steps(optimizer, params, 3)
        flat = torch.randn(buffers[-1].shape, generator=generator())
        for p in params:  # gradients may lie in one buffer too
            p.grad = flat[p.storage_offset() :][: p.numel()]
        optimizer.step()

    optimizer = side_by_side(train, make_views, masked, momentum=0.9)
    assert bits_equal(*buffers)
    params = optimizer.param_groups[0]["params"]
    optimizer.prune(0.5, params)
    assert int((buffers[0] == SENTINEL).sum()) == gap * (len(SIZES) + 1)
    assert [int((p == 0).sum()) for p in params] == [round(0.5 * n) for n in SIZES]


def snapshot(params):
    return [p.detach().clone() for p in params]


OVERLAPPING = {
    "expanded": lambda buffer: [torch.nn.Parameter(buffer[:1].expand(8))],
    "a sliding window": lambda buffer: [torch.nn.Parameter(buffer.as_strided((4, 4), (1, 1)))],
    "a broadcast matrix": lambda buffer: [torch.nn.Parameter(buffer[:4].expand(3, 4))],
}


@pytest.mark.feature("Layouts", "parameters whose elements overlap", answer="refused")
@pytest.mark.parametrize("case", OVERLAPPING)
def test_a_parameter_that_overlaps_itself_is_refused_and_nothing_changes(case):
    good = torch.nn.Parameter(normal(65, torch.float32))
    params = [good, *OVERLAPPING[case](normal(16, torch.float32))]
    optimizer = MaskedSGD(params, lr=0.1, momentum=0.9)
    for p in params:
        p.grad = torch.ones(p.shape)
    before = snapshot(params)
    for call in (
        optimizer.step,
        lambda: optimizer.prune(0.5, params),
        lambda: optimizer.set_masks({p: torch.ones(p.shape) > 0 for p in params}),
    ):
        with pytest.raises(RuntimeError, match="share memory; clone"):
            call()
        assert all(map(bits_equal, snapshot(params), before))
        assert not optimizer.state
        assert not optimizer.masks


SHARING = {
    "the whole of it": lambda buffer: (buffer[:1000], buffer[:1000]),
    "one element": lambda buffer: (buffer[:1000], buffer[999:]),
    "one inside the other": lambda buffer: (buffer, buffer[100:200]),
    "columns": lambda buffer: (buffer.view(-1, 10)[:, :6], buffer.view(-1, 10)[:, 5:]),
    "every other": lambda buffer: (buffer, buffer[::2]),
}


@pytest.mark.feature("Layouts", "two parameters that share memory, stepped one after the other")
@pytest.mark.parametrize("case", SHARING)
def test_parameters_that_share_memory_are_stepped_as_torch_does(case):
    def sharing():
        return [torch.nn.Parameter(view) for view in SHARING[case](normal(500_000, torch.float32))]

    side_by_side(take_steps, sharing, masked=False, momentum=0.9, weight_decay=0.01)
    apart = lambda: [{"params": [p]} for p in sharing()]  # noqa: E731
    ours, theirs = apart(), apart()
    for groups, optimizer in (
        (ours, MaskedSGD(ours, lr=0.1, momentum=0.9)),
        (theirs, torch.optim.SGD(theirs, lr=0.1, momentum=0.9, foreach=False)),
    ):
        take_steps(optimizer, [p for group in groups for p in group["params"]])
    assert all(bits_equal(a["params"][0].detach(), b["params"][0].detach()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.feature("Layouts", "masks for two parameters that share memory", answer="refused")
@pytest.mark.parametrize("case", SHARING)
def test_masks_for_parameters_that_share_memory_are_refused_and_nothing_changes(case):
    params = [torch.nn.Parameter(view) for view in SHARING[case](normal(2000, torch.float32))]
    optimizer, before = MaskedSGD(params, lr=0.1, momentum=0.9), snapshot(params)
    masks = {p: torch.ones(p.shape) > 0 for p in params}
    one_alone = {params[0]: masks[params[0]]}
    for call in (
        lambda: optimizer.prune(0.5, params),
        lambda: optimizer.set_masks(masks),
        lambda: optimizer.set_masks(one_alone),
    ):
        with pytest.raises(RuntimeError, match="two parameters share memory"):
            call()
        assert all(map(bits_equal, snapshot(params), before))
        assert not optimizer.masks


@pytest.mark.feature("Layouts", "parameters interleaved in one buffer")
def test_interleaved_parameters_share_no_memory():
    def interleaved():
        buffer = random_tensor(0).flatten().view(-1, 2)
        return [torch.nn.Parameter(buffer[:, 0]), torch.nn.Parameter(buffer[:, 1])]

    side_by_side(take_steps, interleaved, masked=True, momentum=0.9)


@pytest.mark.feature("Layouts", "gradients that share memory with each other")
@masked_or_not
def test_parameters_may_share_one_gradient(masked):
    def train(optimizer, params):
        for step in range(3):
            shared = random_tensor(step)
            for p in params:
                p.grad = shared
            optimizer.step()

    side_by_side(train, lambda: [torch.nn.Parameter(random_tensor(i)) for i in range(4)], masked, momentum=0.9)


@pytest.mark.feature("Layouts", "a gradient that is its parameter")
@masked_or_not
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.01}], ids=["plain", "momentum"])
def test_a_gradient_may_be_its_parameter(options, masked):
    def train(optimizer, params):
        for p in params:
            p.grad = p.data
        for _ in range(3):
            optimizer.step()

    side_by_side(
        train, lambda: [torch.nn.Parameter(normal(n, torch.float32)) for n in (65, 100_003)], masked, **options
    )


@pytest.mark.feature("Layouts", "a gradient that overlaps its parameter in part", answer="refused")
@pytest.mark.parametrize("n_steps_before", [0, 3])
def test_a_gradient_shifted_over_its_parameter_is_refused_and_nothing_changes(backend, n_steps_before):
    storage = normal(66, torch.float32)
    first, p = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(storage[:-1])
    optimizer = MaskedSGD([{"params": [first]}, {"params": [p]}], lr=0.5, momentum=0.9)
    for _ in range(n_steps_before):
        first.grad, p.grad = torch.ones(5), torch.ones(65)
        optimizer.step()
    before, first_before, state = storage.clone(), first.detach().clone(), len(optimizer.state)
    p.grad = storage[1:]
    first.grad = torch.ones(5)
    with pytest.raises(RuntimeError, match="shares a part of its memory"):
        optimizer.step()
    assert bits_equal(first.detach(), first_before)
    assert len(optimizer.state) == state
    assert bits_equal(storage, before)
