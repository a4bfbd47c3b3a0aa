"""The CUDA kernels where they differ from the CPU's: tables, chunks, samples. test_cuda_on_host.py runs it."""

import pytest
import torch
from cases import DTYPES, bits_equal, generator, mostly_nan, normal, stable_sort_keep

from dsd_kernels import kth_magnitude, masked_sgd_, pack_mask, prune_, unpack_mask, use_backend
from dsd_kernels.ops.global_selection import global_counts
from dsd_kernels.ops.reference import lowbias32

TABLE = 320  # csrc/cuda/tables.h
CHUNK = 16384  # csrc/cuda/selection.h
N = 2 * CHUNK + 7_777


def sampled_places(n, dtype):
    """sample_place of csrc/cuda/search.h, for every place."""
    n_runs = 32 * 1024 // dtype.itemsize // 8
    run = torch.arange(n_runs)
    begin = run * n // n_runs
    room = (run + 1) * n // n_runs - begin - 7
    starts = begin + (room * lowbias32(run) >> 32)
    return (starts[:, None] + torch.arange(8)).flatten()


def with_sample(dtype, others, sampled):
    tensor = others.to(dtype)
    places = sampled_places(N, dtype)
    assert int(places.max()) < N
    tensor[places] = sampled[: len(places)].to(dtype)
    return tensor


def close_together():
    return 1 + torch.rand(N, dtype=torch.float64, generator=generator()) / 50


def spread():
    return torch.linspace(0.5, 1.5, N, dtype=torch.float64)[torch.randperm(N, generator=generator(1))]


MISLEADING = {
    "all above": lambda dtype: with_sample(dtype, normal(N, torch.float64), torch.full((N,), 1000.0)),
    "all below": lambda dtype: with_sample(dtype, normal(N, torch.float64), torch.zeros(N)),
    "too many inside": lambda dtype: with_sample(dtype, close_together(), spread()),
    "two values": lambda dtype: with_sample(dtype, normal(N, torch.float64), torch.tensor([0.5, 1.5]).repeat(N)),
    "nan": lambda dtype: with_sample(dtype, normal(N, torch.float64), torch.full((N,), torch.nan)),
    "mostly nan": lambda dtype: mostly_nan(N, dtype),
    "nans of one payload": lambda dtype: normal(N, dtype).where(torch.arange(N) % 3 == 0, torch.nan),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", MISLEADING.values(), ids=MISLEADING)
def test_a_sample_that_misleads_costs_no_exactness(make, dtype):
    original = make(dtype)
    up_to_nan = int((~original.isnan()).sum())
    for k in (1, N // 3, N // 2, N - 100, min(up_to_nan + 5, N)):
        weight, buffer = original.clone(), original.clone()
        [mask] = unpack_mask(prune_([weight], [buffer], k=[k]), [weight])
        assert torch.equal(mask, stable_sort_keep(original, k))
        assert bits_equal(weight, torch.where(mask, original, 0.0))
        assert bits_equal(buffer, weight)
        parts = [CHUNK + 3, 0, 1, N - CHUNK - 4]
        lost = [int((~part).sum()) for part in mask.split(parts)]
        assert global_counts(original.split(parts), k).tolist() == lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_threshold_where_a_block_does_not_hold_all_that_is_staged(dtype):
    whole = normal(1_000_003, dtype)
    parts, k = [600_000, 3, 400_000], 333_333
    lost = [int((~part).sum()) for part in stable_sort_keep(whole, k).split(parts)]
    assert global_counts(whole.split(parts), k).tolist() == lost


@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 64])
@pytest.mark.parametrize("k", [1, 3, CHUNK - 1, CHUNK, CHUNK + 1])
def test_ties_are_lost_in_memory_order_over_chunks(n, k):
    k = min(k, n)
    original = torch.full((n,), 2.0)
    original[::3] = -2.0
    original[5::1001] = 3.0
    weight = original.clone()
    [mask] = unpack_mask(prune_([weight], k=[k]), [weight])
    assert torch.equal(mask, stable_sort_keep(original, k))


def test_a_list_longer_than_a_table_is_one_list():
    sizes = [i % 7 * 11 for i in range(2 * TABLE + 3)]
    tensors = [normal(n, torch.float32, seed=i) for i, n in enumerate(sizes)]
    k = [n // 2 for n in sizes]
    keep = [stable_sort_keep(t, k_i) for t, k_i in zip(tensors, k, strict=True)]
    weights = [t.clone() for t in tensors]
    packed = prune_(weights, k=k)
    assert all(map(torch.equal, unpack_mask(packed, weights), keep))
    assert all(map(torch.equal, packed, pack_mask(keep)))
    whole = stable_sort_keep(torch.cat(tensors), sum(k)).split(sizes)
    assert global_counts(tensors, sum(k)).tolist() == [int((~part).sum()) for part in whole]

    steps = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    results = []
    for backend in ("reference", "compiled"):
        params, buffers = [t.clone() for t in tensors], [t.clone() for t in weights]
        with use_backend(backend):
            masked_sgd_(params, tensors, buffers, packed, **steps)
        results.append(params + buffers)
    assert all(map(bits_equal, *results))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_random_bits_of_a_later_table_go_on(dtype):
    if dtype.itemsize != 2:
        pytest.skip("only halves are rounded stochastically")
    tensors = [normal(3, dtype, seed=i) for i in range(TABLE + 2)]
    results = []
    for backend in ("reference", "compiled"):
        params = [t.clone() for t in tensors]
        with use_backend(backend):
            masked_sgd_(params, tensors, lr=0.123, rounding_seed=7)
        results.append(params)
    assert all(map(bits_equal, *results))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_odd_addresses(dtype, offset):
    """Weights, masks and bools that begin at no address where a wide access may."""
    n = 1000
    storage = normal(n + 8, dtype)
    original = storage.clone()
    view, mask_storage = storage[offset : offset + n], torch.zeros(n // 8 + 100, dtype=torch.uint8)
    masks = [mask_storage[offset : offset + (n + 63) // 64 * 8]]
    k = n // 2
    keep = stable_sort_keep(original[offset : offset + n], k)
    [value] = kth_magnitude([view], [k])
    assert value == original[offset : offset + n].abs().double().sort().values[k - 1]
    prune_([view], [view.clone()], k=[k], masks=masks)
    assert torch.equal(unpack_mask(masks, [view])[0], keep)
    assert bits_equal(view, torch.where(keep, original[offset : offset + n], 0.0))
    assert bits_equal(storage[:offset], original[:offset])
    assert bits_equal(storage[offset + n :], original[offset + n :])
    bools = torch.zeros(n + 8, dtype=torch.bool)
    bools[offset : offset + n] = keep
    assert torch.equal(pack_mask([bools[offset : offset + n]])[0], masks[0])

    results = []
    for backend in ("reference", "compiled"):
        moved = storage.clone()
        with use_backend(backend):
            masked_sgd_([moved[offset : offset + n]], [original[offset : offset + n]], masks=masks, lr=0.1)
        results.append(moved)
    assert bits_equal(*results)


def test_bytes_that_are_no_bool_pack_as_true():
    odd = torch.arange(256, dtype=torch.uint8).repeat(3).view(torch.bool)
    assert torch.equal(pack_mask([odd])[0], pack_mask([odd.view(torch.uint8) != 0])[0])
