"""P3: exactly round(s * n) weights, the smallest magnitudes, ties by lowest index, on every backend and dtype."""

import pytest
import torch
from cases import DTYPES, awkward, bits_equal, in_memory_order, mostly_nan, normal, stable_sort_keep

from dsd_kernels import kth_magnitude, prune_, unpack_mask


def all_equal(n, dtype, seed=0):
    return torch.full((n,), -1.5, dtype=dtype)


def all_zero(n, dtype, seed=0):
    return torch.zeros(n, dtype=dtype)


INPUTS = (normal, awkward, mostly_nan, all_equal, all_zero)
CHOICES_OF_K = {
    "none": lambda n: 0,
    "one": lambda n: min(1, n),
    "third": lambda n: n // 3,
    "half": lambda n: n // 2,
    "all-but-one": lambda n: max(n - 1, 0),
    "all": lambda n: n,
}


def expected_magnitude(tensor, k):
    if k == 0:
        return torch.tensor(-torch.inf)
    return in_memory_order(tensor).double().abs().sort().values[k - 1]


@pytest.mark.parametrize("choice", CHOICES_OF_K)
@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_prunes_the_set_of_a_stable_sort(backend, device, sizes, dtype, make, choice):
    originals = [make(n, dtype, seed=n).to(device) for n in sizes]
    k = [CHOICES_OF_K[choice](n) for n in sizes]
    weights = [t.clone() for t in originals]
    buffers = [t.clone() for t in originals]

    masks = unpack_mask(prune_(weights, buffers, k=k), weights)

    for original, weight, buffer, mask, k_i in zip(originals, weights, buffers, masks, k, strict=True):
        keep = stable_sort_keep(original, k_i).to(device)
        assert torch.equal(mask, keep)
        assert bits_equal(weight, torch.where(keep, original, 0.0))
        assert bits_equal(buffer, weight)


@pytest.mark.parametrize("choice", CHOICES_OF_K)
@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kth_magnitude_is_that_of_a_sort(backend, device, sizes, dtype, make, choice):
    tensors = [make(n, dtype, seed=n).to(device) for n in sizes]
    k = [CHOICES_OF_K[choice](n) for n in sizes]

    values = kth_magnitude(tensors, k).cpu()

    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.stack([expected_magnitude(t.cpu(), k_i).double() for t, k_i in zip(tensors, k, strict=True)])
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=0, equal_nan=True)


def test_literal_ties_and_boundaries(backend, device):
    weight = torch.tensor([2.0, -1.0, 1.0, 0.0, -0.0, 1.0, -3.0], device=device)
    expected = {
        0: [1, 1, 1, 1, 1, 1, 1],
        1: [1, 1, 1, 0, 1, 1, 1],
        2: [1, 1, 1, 0, 0, 1, 1],
        3: [1, 0, 1, 0, 0, 1, 1],
        4: [1, 0, 0, 0, 0, 1, 1],
        7: [0, 0, 0, 0, 0, 0, 0],
    }
    for k, keep in expected.items():
        pruned = weight.clone()
        mask = unpack_mask(prune_([pruned], k=[k]), [pruned])[0]
        assert mask.int().tolist() == keep


def test_a_million_bfloat16_weights_with_few_distinct_magnitudes(backend, device):
    if backend == "triton" and device == "cpu":
        pytest.skip("a million weights take minutes in the interpreter; 65,537 are tested above")
    weight = (torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16().to(device)
    assert weight.abs().unique().numel() < 4000
    keep = stable_sort_keep(weight, 300_000)
    mask = unpack_mask(prune_([weight], k=[300_000]), [weight])[0]
    assert torch.equal(mask.cpu(), keep)


def test_k_in_a_tensor_selects_as_k_in_a_list(backend, device):
    tensors = [normal(n, torch.float32, seed=n).to(device) for n in (5, 100)]
    k = torch.tensor([2, 70], device=device)
    assert torch.equal(kth_magnitude(tensors, k), kth_magnitude(tensors, [2, 70]))


def test_denormals_are_ordered_and_returned_exactly(backend, device):
    tiny = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64) * 2.0**-149
    weight = tiny.float().to(device)
    assert kth_magnitude([weight], [2]).double().item() == 2 * 2.0**-149


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "offset_view"])
def test_layouts_keep_memory_order_and_touch_nothing_around_them(backend, device, layout):
    storage = normal(4 * 3 * 5 * 7 + 10, torch.float32).round().to(device)
    before = storage.clone()
    view = storage[3 : 3 + 4 * 3 * 5 * 7]
    weight = {
        "transposed": lambda: view.view(20, 21).t(),
        "channels_last": lambda: view.view(4, 5, 7, 3).permute(0, 3, 1, 2),
        "offset_view": lambda: view,
    }[layout]()
    keep = stable_sort_keep(weight, 200).to(device)

    mask = unpack_mask(prune_([weight], k=[200]), [weight])[0]

    assert mask.stride() == weight.stride()
    assert torch.equal(in_memory_order(mask), keep)
    assert bits_equal(storage[:3], before[:3])
    assert bits_equal(storage[-7:], before[-7:])
    assert bits_equal(view, torch.where(keep, before[3:-7], 0.0))


def test_gaps_in_memory_are_left_out_of_kth_magnitude(backend, device):
    storage = torch.arange(1.0, 21.0, device=device).view(4, 5)
    assert kth_magnitude([storage[:, ::2]], [3]).item() == 5.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tensors_at_once_equal_one_by_one(backend, device, dtype):
    tensors = [awkward(n, dtype, seed=n).to(device) for n in (3, 0, 64, 1, 700)]
    k = [1, 0, 64, 0, 333]
    together, alone = [t.clone() for t in tensors], [t.clone() for t in tensors]
    masks = prune_(together, k=k)
    for i, t in enumerate(alone):
        assert torch.equal(prune_([t], k=[k[i]])[0], masks[i])
        assert bits_equal(t, together[i])
