"""P3 beyond the caches: a sample's bracket, its exact fallback, ties over many chunks, one threshold for many tensors.

The interpreter of Triton would take minutes here; its chunks are tested in test_triton.py.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import DTYPES, awkward, bits_equal, generator, normal, stable_sort_keep

from dsd_kernels import backends, kth_magnitude, prune_, unpack_mask, use_backend
from dsd_kernels.ops.global_selection import global_counts
from dsd_kernels.ops.reference import lowbias32

N = 300_007  # above what one task selects alone, and no multiple of a chunk


BACKENDS = sorted({row.backend for row in backends() if row.available} - {"triton"})


@pytest.fixture(params=BACKENDS, autouse=True)
def large_backend(request):
    with use_backend(request.param):
        yield request.param


SEEDS = (0, 0x9E3779B9)
BITS = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def sampled_places(n, seed):
    """Where csrc/cpu looks first, and then: the places of quickselect.h in runs of four."""
    n_runs = -(-int(0.35 * n ** (2 / 3)) // 4)
    step = (n << 16) // n_runs
    i = torch.arange(n_runs)
    starts = (i * step >> 16) + ((step >> 16) * lowbias32(i ^ seed) >> 32)
    return (starts[:, None] + torch.arange(4)).clamp(max=n - 1).flatten()


def misleads_by_values(dtype, seeds=SEEDS):
    """Every weight that is sampled is larger than all others."""
    tensor = normal(N, dtype)
    for seed in seeds:
        tensor[sampled_places(N, seed)] = 1000.0
    return tensor


def misleads_by_spread(dtype):
    """What is sampled is spread evenly; all else lies close together, inside any bracket of the sample."""
    tensor = (1 + torch.rand(N, dtype=torch.float64, generator=generator()) / 50).to(dtype)
    places = torch.cat([sampled_places(N, seed) for seed in SEEDS])
    tensor[places] = torch.linspace(0.5, 1.5, len(places), dtype=torch.float64)[
        torch.randperm(len(places), generator=generator(1))
    ].to(dtype)
    return tensor


def misleads_both(dtype, others, *sampled):
    """The second sample is at places that the bracket of the first decides: here its least and its largest value."""
    bits = torch.tensor(sampled, dtype=dtype).view(BITS[dtype]).tolist()
    second_seed = ((bits[0] + 3 * bits[-1] + 1) * 0x9E3779B97F4A7C15 % 2**64) >> 32
    tensor = others(N, dtype)
    for seed in (second_seed, 0):
        places = sampled_places(N, seed)
        tensor[places] = torch.tensor(sampled, dtype=dtype).repeat(len(places))[: len(places)]
    return tensor


def close_together(n, dtype):
    return (1 + torch.rand(n, dtype=torch.float64, generator=generator()) / 50).to(dtype)


def falling(dtype):
    return normal(N, dtype).sort(descending=True).values


INPUTS = {
    "normal": lambda dtype: normal(N, dtype),
    "awkward": lambda dtype: awkward(N, dtype),
    "zeros": lambda dtype: torch.zeros(N, dtype=dtype),
    "all equal": lambda dtype: torch.full((N,), -1.5, dtype=dtype),
    "two values": lambda dtype: torch.where(normal(N, dtype) > 0, 1.0, -2.0).to(dtype),
    "pruned before": lambda dtype: torch.where(normal(N, dtype).abs() > 0.7, normal(N, dtype), 0.0),
    "rising": lambda dtype: normal(N, dtype).sort().values,
    "falling": falling,
    "striped": lambda dtype: torch.where(torch.arange(N) % 8 < 4, normal(N, dtype), 100.0),
    "misleads by values": misleads_by_values,
    "misleads the first sample": lambda dtype: misleads_by_values(dtype, SEEDS[:1]),
    "misleads by spread": misleads_by_spread,
    "misleads both by values": lambda dtype: misleads_both(dtype, normal, 1000.0),
    "misleads both by spread": lambda dtype: misleads_both(dtype, close_together, 0.5, 1.5),
    "nan": lambda dtype: torch.full((N,), torch.nan, dtype=dtype),
}
CHOICES_OF_K = (0, 1, 1000, N // 3, N // 2, N - 700, N - 1, N)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_the_kth_magnitude_for_any_k(make, dtype):
    tensor = make(dtype)
    expected = tensor.double().abs().sort().values
    for k in CHOICES_OF_K:
        [value] = kth_magnitude([tensor], [k]).double()
        torch.testing.assert_close(
            value, expected[k - 1] if k else -torch.inf * torch.ones_like(value), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_prunes_the_set_of_a_stable_sort(make, dtype):
    original = make(dtype)
    for k in (0, 1000, N // 2, N - 700, N):
        weight, buffer = original.clone(), original.clone()
        [mask] = unpack_mask(prune_([weight], [buffer], k=[k]), [weight])
        keep = stable_sort_keep(original, k)
        assert torch.equal(mask, keep)
        assert bits_equal(weight, torch.where(keep, original, 0.0))
        assert bits_equal(buffer, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.9])
def test_one_threshold_for_all_tensors(make, dtype, fraction):
    whole = make(dtype)
    tensors = whole.split([3, 0, 40_000, 100_000, 1, N - 140_004])
    k = int(fraction * N)
    keep = stable_sort_keep(whole, k).split([t.numel() for t in tensors])
    assert global_counts(tensors, k).tolist() == [int((~part).sum()) for part in keep]


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_and_small_tensors_at_once_equal_one_by_one(dtype):
    sizes = (N, 3, 0, 200_000, 65_537, 131_073, 1)
    tensors = [awkward(n, dtype, seed=n) for n in sizes]
    k = [n * (i + 1) // 9 for i, n in enumerate(sizes)]
    together = kth_magnitude(tensors, k)
    alone = torch.cat([kth_magnitude([t], [k_i]) for t, k_i in zip(tensors, k, strict=True)])
    assert bits_equal(together, alone)


def test_calls_from_many_threads_do_not_share_memory():
    tensors = [normal(n, torch.float32, seed=n) for n in (N, 200_000, 500_000, 70_000) * 4]
    expected = [t.abs().kthvalue(len(t) // 2).values for t in tensors]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda t: kth_magnitude([t], [len(t) // 2])[0], tensors))
    assert results == expected


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_a_view_among_sentinels(offset):
    storage = torch.full((N + 64,), torch.nan)
    view = storage[offset : offset + N]
    view.copy_(normal(N, torch.float32))
    keep = stable_sort_keep(view, N // 2)
    expected = torch.where(keep, view, 0.0)
    prune_([view], k=[N // 2])
    assert bits_equal(view, expected)
    assert storage[:offset].isnan().all()
    assert storage[offset + N :].isnan().all()
