"""Stochastic rounding: exact probabilities, the same bits on every backend, nothing changed that is representable."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from cases import bits_equal, generator, normal

from dsd_kernels import masked_sgd_, pack_mask, use_backend

BF16, F16 = torch.bfloat16, torch.float16
halves = pytest.mark.parametrize("dtype", [BF16, F16])
SEEDS = (0, 1, -1, 2**32, 12345678901234567, -(2**63), 2**63 - 1)
SMALL, SMALLEST = 2.0**-133, 2.0**-24  # the smallest denormals of bfloat16 and float16
# dtype, value, its neighbour towards zero, the one away from it, and the 65536ths of the way that it has gone
TABLE = [
    (BF16, 1 + 2**-9, 1.0, 1.0078125, 16384),
    (BF16, -(1 + 3 * 2**-9), -1.0, -1.0078125, 49152),
    (BF16, 1 + 2**-23, 1.0, 1.0078125, 1),
    (BF16, 255.5, 255.0, 256.0, 32768),
    (BF16, (2 - 2**-23) * 2.0**127, (2 - 2**-7) * 2.0**127, math.inf, 65535),
    (BF16, SMALL / 2, 0.0, SMALL, 32768),
    (BF16, -(2.0**-149), -0.0, -SMALL, 1),
    (BF16, 127.5 * SMALL, 127 * SMALL, 2.0**-126, 32768),
    (F16, 1 + 2**-12, 1.0, 1 + 2**-10, 16384),
    (F16, -2047.25, -2047.0, -2048.0, 16384),
    (F16, 65512.0, 65504.0, math.inf, 16384),
    (F16, 65536.0, math.inf, math.inf, 0),
    (F16, -3.0e38, -math.inf, -math.inf, 0),
    (F16, 0.75 * SMALLEST, 0.0, SMALLEST, 49152),
    (F16, -1022.5 * SMALLEST, -1022 * SMALLEST, -1023 * SMALLEST, 32768),
    (F16, 1023.5 * SMALLEST, 1023 * SMALLEST, 2.0**-14, 32768),
    (F16, (3 + 2**-16) * SMALLEST, 3 * SMALLEST, 4 * SMALLEST, 1),
    (F16, 2.0**-40, 0.0, SMALLEST, 1),
    (F16, -(2.0**-41), -0.0, -SMALLEST, 0),  # below 2^-16 of the way: truncated
    (F16, 2.0**-149, 0.0, SMALLEST, 0),
]


def rounded(values, dtype, seed):
    """float32 values as an update leaves them: -0 - 1 * -value is the value, and -0 - 1 * 0 is -0."""
    params = [torch.full_like(v, -0.0, dtype=dtype) for v in values]
    masked_sgd_(params, [-v for v in values], lr=1.0, rounding_seed=seed)
    return params


def lowbias32(x):
    """In integers of 64 bits or more: Python's, or numpy's uint64."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def noise(seed, ordinal, n):
    """The 16 random bits of n weights."""
    low, high = seed % 2**32, seed // 2**32 % 2**32
    key = lowbias32(lowbias32((low + ordinal * 0x9E3779B9) % 2**32) ^ high)
    weights = np.arange(n, dtype=np.uint64)
    return torch.from_numpy((lowbias32(weights ^ np.uint64(key)) % 65536).astype(np.int64))


@cache
def weight_with_noise(wanted, n):
    """A seed and one of n weights that draws the wanted bits."""
    draws = ((seed, (noise(seed, 0, n) == wanted).nonzero()) for seed in itertools.count())
    seed, found = next(draw for draw in draws if len(draw[1]))
    return seed, found[0].item()


def random_floats(n):
    """float32 of every exponent, without NaN."""
    bits = torch.randint(-(2**31), 2**31, (n,), dtype=torch.int32, generator=generator())
    return bits.view(torch.float32).nan_to_num(0.0, torch.inf, -torch.inf)


@pytest.mark.feature("Dtypes", "stochastic rounding of half-precision weights, seeded")
@halves
@pytest.mark.parametrize("seed", SEEDS)
def test_the_random_bits_decide_by_the_exact_distance(backend, device, dtype, seed):
    """Up if and only if noise + distance reaches 65536: the exact probability, with each noise of 16 bits as likely."""
    rows, n = [row[1:] for row in TABLE if row[0] == dtype], 300
    results = rounded([torch.full((n,), row[0], device=device) for row in rows], dtype, seed)
    for ordinal, ((_, lower, upper, distance), result) in enumerate(zip(rows, results, strict=True)):
        goes_up = noise(seed, ordinal, n) + distance >= 65536
        expected = torch.where(goes_up, torch.tensor(upper, dtype=dtype), torch.tensor(lower, dtype=dtype))
        assert bits_equal(result.cpu(), expected)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]:g}".removeprefix("torch."))
def test_the_decision_turns_at_one_value_of_the_noise(backend, device, row):
    dtype, value, lower, upper, distance = row
    for wanted, neighbour in ((65536 - distance, upper), (65535 - distance, lower)):
        if wanted < 65536:
            seed, weight = weight_with_noise(wanted, 1024)
            (result,) = rounded([torch.full((1024,), value, device=device)], dtype, seed)
            assert bits_equal(result[weight].cpu(), torch.tensor(neighbour, dtype=dtype))


def test_the_hash_is_lowbias32():
    """Values of the C function that Chris Wellons published, compiled and run once."""
    published = {0: 0x00000000, 1: 0x688990C0, 2: 0xD1132181, 0x12345678: 0xF5E71C96, 0xFFFFFFFF: 0x6768824A}
    assert {x: lowbias32(x) for x in published} == published


@halves
def test_a_result_is_one_of_the_two_neighbours(backend, device, dtype):
    values = random_floats(20_000 if backend != "triton" or device == "cuda" else 3000)
    (result,) = (r.cpu() for r in rounded([values.to(device)], dtype, seed=3))
    nearest = values.to(dtype)
    beyond = (nearest.float().abs() > values.abs()).to(torch.int16)
    towards_zero = nearest.view(torch.int16) - beyond  # the bits of the next smaller magnitude
    is_lower = result.view(torch.int16) == towards_zero
    is_upper = result.view(torch.int16) == towards_zero + 1
    is_exact = towards_zero.view(dtype).float() == values
    assert torch.equal(is_lower | (is_upper & ~is_exact), torch.ones_like(is_lower))
    assert (is_lower & ~is_exact).any()
    assert is_upper.any()


@halves
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_every_representable_value_stays_as_it_is(backend, device, dtype, seed):
    param = torch.arange(-(2**15), 2**15, device=device).to(torch.int16).view(dtype)
    before = param.clone()
    masked_sgd_([param], [torch.zeros_like(param)], lr=0.0, rounding_seed=seed)
    is_nan = before.isnan()
    assert bits_equal(param[~is_nan], before[~is_nan])
    quiet_nan = {BF16: 0x7FC0, F16: 0x7E00}[dtype]
    assert torch.equal(param.view(torch.int16)[is_nan], torch.full_like(param.view(torch.int16)[is_nan], quiet_nan))


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("momentum_dtype", [None, "own", torch.float32], ids=["plain", "momentum", "wide-momentum"])
@halves
def test_equals_the_reference_bitwise(backend, device, sizes, dtype, momentum_dtype, masked):
    wide = dtype if momentum_dtype == "own" else momentum_dtype
    results = []
    for name in ("reference", backend):
        params, grads = ([normal(n, dtype, seed=n + i).to(device) for n in sizes] for i in range(2))
        buffers = [normal(n, wide, seed=n + 2).to(device) for n in sizes] if wide else []
        with use_backend(name):
            masks = pack_mask([p > 0 for p in params]) if masked else []
            options = {"lr": 0.1, "momentum": 0.9 if wide else 0.0, "weight_decay": 0.01}
            masked_sgd_(params, grads, buffers, masks, rounding_seed=-7, **options)
        results.append([*params, *buffers])
    for a, b in zip(*results, strict=True):
        assert bits_equal(a, b)


@halves
def test_momentum_is_rounded_to_nearest(backend, device, dtype):
    results = []
    for seed in (None, 4):
        param, grad, buffer = (normal(1000, dtype, seed=i).to(device) for i in range(3))
        masked_sgd_([param], [grad], [buffer], lr=0.1, momentum=0.9, rounding_seed=seed)
        results.append((param, buffer))
    assert bits_equal(results[0][1], results[1][1])
    assert not bits_equal(results[0][0], results[1][0])


@halves
@pytest.mark.parametrize("offset", [1, 3, 64])
def test_random_bits_belong_to_the_weight_and_not_to_its_address(backend, device, dtype, offset):
    storage, values = torch.full((500,), -0.0, dtype=dtype, device=device), normal(400, torch.float32).to(device)
    masked_sgd_([storage[offset : offset + 400]], [-values], lr=1.0, rounding_seed=9)
    assert bits_equal(storage[offset : offset + 400], rounded([values], dtype, 9)[0])
    around = torch.cat([storage[:offset], storage[offset + 400 :]])
    assert bits_equal(around, torch.full_like(around, -0.0))


@halves
def test_random_bits_follow_memory_order(backend, device, dtype):
    values = normal(420, torch.float32).to(device)
    transposed = rounded([values.view(20, 21).t()], dtype, 9)[0]
    assert transposed.stride() == (1, 21)
    assert bits_equal(transposed.t().flatten(), rounded([values], dtype, 9)[0])


@pytest.mark.parametrize("distance", [1 / 4, 1 / 2, 7 / 8])
@halves
def test_the_mean_over_seeds_is_the_value(dtype, distance):
    """Each weight over the seeds, and all of them together, within six standard deviations of the binomial."""
    n, n_seeds = 500, 1000
    spacing = torch.finfo(dtype).eps
    values = torch.full((n,), 1 + distance * spacing)
    n_up = sum((rounded([values], dtype, seed)[0] > 1).long() for seed in range(n_seeds))
    deviation = math.sqrt(n_seeds * distance * (1 - distance))
    assert (n_up - n_seeds * distance).abs().max() <= 6 * deviation
    assert abs(n_up.sum().item() - n * n_seeds * distance) <= 6 * deviation * math.sqrt(n)


@halves
def test_other_seeds_and_other_tensors_draw_other_bits(backend, device, dtype):
    """At halfway, any two draws agree in half of the weights, within six standard deviations."""
    n = 2000
    halfway = torch.full((n,), 1 + torch.finfo(dtype).eps / 2, device=device)
    draws = [draw for seed in SEEDS for draw in rounded([halfway, halfway], dtype, seed)]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs((a == b).sum().item() - n / 2) <= 6 * math.sqrt(n) / 2


@halves
@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_in_a_tensor_is_that_seed_and_is_not_written(backend, device, dtype, seed):
    values = normal(100, torch.float32).to(device)
    for shape in ((), (1,)):
        tensor = torch.full(shape, seed, dtype=torch.int64, device=device)
        assert bits_equal(rounded([values], dtype, tensor)[0], rounded([values], dtype, seed)[0])
        assert tensor.item() == seed


@halves
def test_a_pruned_weight_is_positive_zero_whatever_is_drawn(backend, device, dtype):
    values = -normal(500, torch.float32).to(device).abs()
    values[::7], values[1::7] = torch.nan, -torch.inf
    keep = torch.arange(500, device=device) % 2 == 0
    params = [torch.full_like(values, -0.0, dtype=dtype)]
    masked_sgd_(params, [-values], masks=pack_mask([keep]), lr=1.0, rounding_seed=11)
    assert not params[0].view(torch.int16)[~keep].any()
    assert bits_equal(params[0][keep], rounded([values], dtype, 11)[0][keep])
