"""Lists of different dtypes in one step: wide momentum, master weights with half-precision copies, other gradients."""

import pytest
import torch
from cases import awkward, bits_equal, normal, option_id

from dsd_kernels import masked_sgd_, pack_mask, use_backend

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# the dtypes of parameters, gradients, momentum and copies
MIXTURES = {
    "bfloat16-wide-momentum": (BF16, BF16, F32, None),
    "float16-wide-momentum": (F16, F16, F32, None),
    "bfloat16-wide-gradient": (BF16, F32, BF16, None),
    "float16-bfloat16-gradient": (F16, BF16, F16, None),
    "float32-narrow-gradient": (F32, F16, F32, None),
    "masters-bfloat16-copies": (F32, BF16, F32, BF16),
    "masters-float16-copies": (F32, F16, F32, F16),
    "masters-of-another-half": (F32, F32, F32, BF16),
}
OPTIONS = [
    {"momentum": 0.0},
    {"momentum": 0.0, "weight_decay": 0.01, "maximize": True},
    {"momentum": 0.9, "dampening": 0.3, "maximize": True},
    {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
]
mixtures = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
every_option = pytest.mark.parametrize("options", OPTIONS, ids=option_id)
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])


def same(a, b):
    """Equal to the bit, except that a NaN may be any NaN: the payload of a half-precision NaN is the converter's."""
    assert torch.equal(a.isnan(), b.isnan())
    assert bits_equal(a.nan_to_num(0.0), b.nan_to_num(0.0))


def make_lists(mixture, sizes, device, momentum):
    param, grad, buffer, copy = mixture
    params = [normal(n, param, seed=n).to(device) for n in sizes]
    return {
        "params": params,
        "grads": [awkward(n, grad, seed=n + 1).to(device) for n in sizes],
        "momentum_buffers": [normal(n, buffer, seed=n + 2).to(device) for n in sizes] if momentum else [],
        "copies": [p.to(copy) for p in params] if copy else [],
    }


def make_masks(sizes, device):
    return [(normal(n, F32, seed=n + 3) > 0).to(device) for n in sizes]


@pytest.mark.feature("Dtypes", "float32 momentum of bfloat16 and float16 weights (momentum_dtype)")
@pytest.mark.feature("Dtypes", "float32 master weights with half-precision copies (master_weights)")
@masked_or_not
@every_option
@mixtures
def test_equals_the_reference_bitwise(backend, device, sizes, mixture, options, masked):
    results = []
    for name in ("reference", backend):
        lists = make_lists(mixture, sizes, device, options["momentum"])
        with use_backend(name):
            masks = pack_mask(make_masks(sizes, device)) if masked else []
            masked_sgd_(**lists, masks=masks, lr=0.1, **options)
        results.append(lists)
    for name in ("params", "grads", "momentum_buffers", "copies"):
        for a, b in zip(results[0][name], results[1][name], strict=True):
            same(a, b)


def torch_sgd(param, grad, buffer, **options):
    """torch's own step in float32, whatever the lists are stored in."""
    weight = torch.nn.Parameter(param.float())
    weight.grad = grad.float()
    optimizer = torch.optim.SGD([weight], lr=0.1, foreach=False, **options)
    if buffer is not None:
        optimizer.state[weight]["momentum_buffer"] = buffer.float().clone()
    optimizer.step()
    return weight.detach(), optimizer.state[weight].get("momentum_buffer")


@pytest.mark.feature("Dtypes", "float32 momentum of bfloat16 and float16 weights (momentum_dtype)")
@pytest.mark.feature("Dtypes", "float32 master weights with half-precision copies (master_weights)")
@every_option
@mixtures
def test_the_reference_is_torchs_sgd_in_float32_and_one_rounding(mixture, options):
    lists = make_lists(mixture, (1, 65, 1000), "cpu", options["momentum"])
    params, buffers = ([t.clone() for t in lists[name]] for name in ("params", "momentum_buffers"))
    with use_backend("reference"):
        for _ in range(3):
            masked_sgd_(**lists, lr=0.1, **options)
            for i, grad in enumerate(lists["grads"]):
                weight, buffer = torch_sgd(params[i], grad, buffers[i] if buffers else None, **options)
                params[i] = weight.to(mixture[0])
                same(lists["params"][i], params[i])
                if buffers:
                    buffers[i] = buffer.to(mixture[2])
                    same(lists["momentum_buffers"][i], buffers[i])
                if lists["copies"]:
                    same(lists["copies"][i], weight.to(mixture[3]))


@pytest.mark.feature("Dtypes", "masks on master weights and their copies")
@pytest.mark.parametrize("copy_dtype", [BF16, F16])
def test_a_copy_is_its_rounded_parameter_after_each_step(backend, device, sizes, copy_dtype):
    lists = make_lists((F32, copy_dtype, F32, copy_dtype), sizes, device, momentum=0.9)
    masks = make_masks(sizes, device)
    packed = pack_mask(masks)
    for _ in range(3):
        masked_sgd_(**lists, masks=packed, lr=0.1, momentum=0.9, weight_decay=0.01)
        for param, copy, mask in zip(lists["params"], lists["copies"], masks, strict=True):
            same(copy, param.to(copy_dtype))
            assert not copy.view(torch.int16)[~mask].any()
            assert not param.view(torch.int32)[~mask].any()


@pytest.mark.feature("Dtypes", "weights written by others, in whatever way, reach their masters")
@pytest.mark.parametrize("copy_dtype", [BF16, F16])
def test_a_copy_that_others_wrote_is_the_weight(backend, device, copy_dtype):
    """Also NaN, infinities, zeros of the other sign and neighbours; what nobody wrote keeps its lower bits."""
    param = normal(130, F32).to(device)
    copy = param.to(copy_dtype)
    bits = copy.view(torch.int16)
    bits[3:40] += 1
    copy[60:65] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0], dtype=copy_dtype)
    param[64], param[100], copy[100] = 0.0, 0.0, 0.0
    expected = param.clone()
    expected[3:40], expected[60:65] = copy[3:40].float(), copy[60:65].float()
    masked_sgd_([param], [torch.zeros_like(copy)], copies=[copy], lr=0.1)
    same(param, expected)
    same(copy, expected.to(copy_dtype))


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "offset_view"])
def test_copies_are_written_in_place_and_nothing_around_them(backend, device, layout):
    view = {
        "transposed": lambda t: t[3:-7].view(20, 21).t(),
        "channels_last": lambda t: t[3:-7].view(4, 5, 7, 3).permute(0, 3, 1, 2),
        "offset_view": lambda t: t[3:-7],
    }[layout]
    storages = [normal(430, dtype, seed=i).to(device) for i, dtype in enumerate((F32, BF16, F32, BF16))]
    before = [s.clone() for s in storages]
    param, grad, buffer, copy = (view(s) for s in storages)
    expected = param.contiguous(), grad.contiguous(), buffer.contiguous(), copy.contiguous()

    # the gradient's strides differ from the parameter's
    masked_sgd_([param], [grad.contiguous()], [buffer], copies=[copy], lr=0.1, momentum=0.9)
    masked_sgd_([expected[0]], [expected[1]], [expected[2]], copies=[expected[3]], lr=0.1, momentum=0.9)

    for ours, wanted in zip((param, grad, buffer, copy), expected, strict=True):
        assert bits_equal(ours, wanted)
    for storage, original in zip(storages, before, strict=True):
        assert bits_equal(storage[:3], original[:3])
        assert bits_equal(storage[-7:], original[-7:])
    assert not bits_equal(storages[3], before[3])


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_grad_scale_divides_gradients_of_another_dtype(backend, device, dtype):
    """Scaled gradients that float16 can hold: what loss scaling is for."""
    scale, zero = (torch.tensor(v, device=device) for v in (1024.0, 0.0))
    grad = (normal(65, F16) / 64).to(device)
    p, q = (normal(65, dtype).to(device) for _ in range(2))
    masked_sgd_([p], [grad * 1024], lr=0.1, grad_scale=scale, found_inf=zero)
    masked_sgd_([q], [grad.float()], lr=0.1)
    assert bits_equal(p, q)


@mixtures
def test_found_inf_leaves_every_list_as_it_was(backend, device, mixture):
    lists = make_lists(mixture, (65, 7), device, momentum=0.9)
    before = {name: [t.clone() for t in tensors] for name, tensors in lists.items()}
    seed = 5 if mixture[0] != F32 else None
    masked_sgd_(**lists, lr=0.1, momentum=0.9, found_inf=torch.tensor(2.0, device=device), rounding_seed=seed)
    for name, tensors in lists.items():
        for after, original in zip(tensors, before[name], strict=True):
            assert bits_equal(after, original)


def test_version_counters_of_copies_are_bumped():
    copy = torch.ones(3, dtype=BF16, requires_grad=True)
    loss = (copy * copy).sum()
    masked_sgd_([torch.ones(3)], [torch.ones(3)], copies=[copy.detach()], lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
