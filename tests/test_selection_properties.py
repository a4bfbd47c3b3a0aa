"""P3 over any bit patterns; apart from test_selection.py, which a GPU machine runs without hypothesis."""

import torch
from cases import stable_sort_keep
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_kernels import prune_, unpack_mask


@given(bits=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=70), fraction=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_any_bit_patterns(bits, fraction):
    tensor = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    k = round(fraction * len(bits))
    weight = tensor.clone()
    mask = unpack_mask(prune_([weight], k=[k]), [weight])[0]
    assert torch.equal(mask, stable_sort_keep(tensor, k))
    assert not weight[~mask].view(torch.int32).any()
