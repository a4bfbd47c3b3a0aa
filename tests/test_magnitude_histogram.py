"""The counts that selection over shards adds up: of one digit, among the weights that share the higher ones."""

import pytest
import torch
from cases import DTYPES, awkward, normal

from dsd_kernels.ops.reference import magnitude_keys


def histogram(tensors, prefixes, shift):
    return torch.ops.dsd_kernels.magnitude_histogram(tensors, prefixes, shift)


def expected_counts(tensor, prefix, shift):
    """By Python's own integers."""
    counts = [0] * 256
    for key in magnitude_keys(tensor.cpu()).tolist():
        if key >> shift >> 8 == prefix:
            counts[key >> shift & 255] += 1
    return counts


def test_literal_digits(backend, device):
    weights = torch.tensor([1.0, -1.0, 1.5, 2.0, 0.0, -0.0, torch.nan, -torch.inf], device=device)
    # 1.0 is 0x3f800000, 1.5 0x3fc00000, 2.0 0x40000000, infinity 0x7f800000, NaN one more
    none = torch.tensor([0], device=device)
    assert nonzero(histogram([weights], none, 24)) == {0x3F: 3, 0x40: 1, 0x00: 2, 0x7F: 2}
    assert nonzero(histogram([weights], none + 0x3F, 16)) == {0x80: 2, 0xC0: 1}
    assert nonzero(histogram([weights], none + 0x7F8000, 0)) == {0x00: 1, 0x01: 1}
    assert nonzero(histogram([weights], none + 0x41, 16)) == {}


def nonzero(counts):
    return {value: count for value, count in enumerate(counts[0].tolist()) if count}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_digit_of_tensors_of_many_sizes(backend, device, sizes, dtype):
    sizes = [n for n in sizes if n < 5000]
    tensors = [(awkward if n % 2 else normal)(n, dtype, seed=n).to(device) for n in sizes]
    tensors.append(normal(24, dtype).view(2, 3, 4).permute(2, 0, 1).to(device))
    for shift in range((8 * dtype.itemsize - 2) // 8 * 8, -1, -8):
        # the prefix of the largest magnitude, that of a middle one, and one that no weight has
        keys = [magnitude_keys(t.cpu()).sort().values.tolist() or [0] for t in tensors]
        prefixes = [(own[i % 3 * (len(own) - 1) // 2]) >> shift >> 8 for i, own in enumerate(keys)]
        got = histogram(tensors, torch.tensor(prefixes, device=device), shift)
        assert got.tolist() == [expected_counts(t, p, shift) for t, p in zip(tensors, prefixes, strict=True)]


def test_many_equal_weights_count_in_one_bin(backend, device):
    n = 5000 if backend == "triton" and device == "cpu" else 1_000_003
    ones = torch.ones(n, device=device)
    assert nonzero(histogram([ones], torch.tensor([0], device=device), 24)) == {0x3F: n}
    assert histogram([], torch.empty(0, dtype=torch.int64, device=device), 0).shape == (0, 256)
