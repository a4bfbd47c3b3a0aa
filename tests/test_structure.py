"""N:M promises: exact in every group, ties by lowest index, the same in prune, masks and plan, bad input named."""

import copy

import pytest
import torch
from cases import bits_equal, generator, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from test_no_synchronisation import Watch
from torch import nn
from torch.sparse import _semi_structured_conversions as conversions

from dsd_kernels import MaskedSGD, masks
from dsd_kernels.ops.checks import FLOAT_DTYPES
from dsd_kernels.structure import parse_structure, structured_mask

NAN, INF = float("nan"), float("inf")


def keeps(row: list[float], structure: str, dtype: torch.dtype = torch.float32) -> list[bool]:
    nm = parse_structure(structure)
    k = len(row) // nm.group * nm.n_pruned
    [mask] = structured_mask(torch.tensor([row], dtype=dtype), k, nm).tolist()
    return mask


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(
    ("row", "structure", "expected"),
    [
        ([1.0, -4.0, 3.0, 2.0], "2:4", "0110"),
        ([1.0, -4.0, 3.0, 2.0, 5.0, 6.0, 7.0, 8.0], "2:4", "01100011"),
        ([1.0, 1.0, 1.0, 1.0], "2:4", "0011"),
        ([0.0, -0.0, 0.0, -0.0], "1:4", "0001"),
        ([2.0, 1.0, 1.0, 1.0], "2:4", "1001"),
        ([NAN, INF, 1.0, -INF], "2:4", "1001"),
        ([NAN, INF, 1.0, 2.0], "1:4", "1000"),
        ([3.0, 1.0, 2.0], "1:3", "100"),
        ([1.0, 2.0], "1:2", "01"),
        ([6e-8, 0.0, 1.2e-7, 0.0], "2:4", "1010"),  # squared they would be 0 in float16
    ],
)
def test_literal(row, structure, expected, dtype):
    assert keeps(row, structure, dtype) == [digit == "1" for digit in expected]


def oracle(weight: torch.Tensor, nm) -> torch.Tensor:
    """Weight by weight, in plain Python."""
    mask = torch.ones(weight.shape, dtype=torch.bool)
    columns = weight.movedim(1, -1).reshape(-1, weight.shape[1])
    kept = mask.movedim(1, -1).reshape(-1, weight.shape[1])
    for row, keep in zip(columns.tolist(), kept, strict=True):
        for start in range(0, len(row), nm.group):
            order = sorted(range(start, start + nm.group), key=lambda i: abs(row[i]))  # stable
            keep[order[: nm.n_pruned]] = False
    inner = [size for dim, size in enumerate(weight.shape) if dim != 1]
    return kept.reshape(*inner, weight.shape[1]).movedim(-1, 1)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.integers(0, 10**6), st.sampled_from([(), (3,), (2, 3)])
)
def test_every_group_is_that_of_a_stable_sort(n_rows, n_groups, group, seed, kernel):
    weight = torch.randn(n_rows, n_groups * group, *kernel, generator=generator(seed)).mul_(3).round_()  # ties
    nm = parse_structure(f"{1 + seed % (group - 1)}:{group}")
    k = weight.numel() // group * nm.n_pruned
    assert torch.equal(structured_mask(weight, k, nm), oracle(weight, nm))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "gaps"])
def test_prune_and_masks_agree_in_every_layout(layout):
    values = normal(8 * 12 * 3 * 3, torch.float32).view(8, 12, 3, 3)
    weight = {
        "contiguous": values,
        "channels_last": values.to(memory_format=torch.channels_last),
        "transposed": values.transpose(0, 1).contiguous().transpose(0, 1),
        "gaps": torch.zeros(8, 12, 3, 6)[..., ::2].copy_(values),
    }[layout]
    expected = oracle(values, parse_structure("2:4"))
    param = nn.Parameter(weight)
    optimizer = MaskedSGD([param], lr=0.1, momentum=0.9)
    optimizer.prune(0.5, structure="2:4")
    assert torch.equal(optimizer.masks[param], expected)
    assert bits_equal(param, torch.where(expected, values, 0.0))
    [mask] = masks.magnitude_masks([values], 0.5, structure="2:4")
    assert torch.equal(mask, expected)
    param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.verify()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_pattern_is_what_semi_structured_tensors_take(dtype):
    """Their conversion keeps two of four and drops the rest: nothing is lost on the way there and back."""
    layer = nn.Linear(128, 64, dtype=dtype)
    optimizer = MaskedSGD([layer.weight], lr=0.1)
    dense = layer.weight.detach().clone()
    optimizer.prune(0.5, structure="2:4")

    def there_and_back(weight):
        return conversions.sparse_semi_structured_to_dense_cutlass(
            *conversions.sparse_semi_structured_from_dense_cutlass(weight)
        )

    assert torch.equal(there_and_back(layer.weight.detach()), layer.weight)
    assert not torch.equal(there_and_back(dense), dense)


class TestPrune:
    def test_masters_momentum_and_weights_are_selected_together(self):
        weight = nn.Parameter(normal(16 * 8, torch.float32).view(16, 8).bfloat16())
        optimizer = MaskedSGD([weight], lr=0.1, momentum=0.9, master_weights=True)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        master = optimizer.state[weight]["master_weight"].clone()
        optimizer.prune(0.5, structure="2:4")
        expected = oracle(master, parse_structure("2:4"))
        assert torch.equal(optimizer.masks[weight], expected)
        for tensor in (weight, optimizer.state[weight]["master_weight"], optimizer.state[weight]["momentum_buffer"]):
            assert bits_equal(tensor[~expected], torch.zeros(64, dtype=tensor.dtype))
        assert bits_equal(optimizer.state[weight]["master_weight"][expected], master[expected])
        optimizer.verify()

    def test_masters_are_compared_where_rounded_weights_tie(self):
        weight = nn.Parameter(torch.ones(1, 4, dtype=torch.bfloat16))
        optimizer = MaskedSGD([weight], lr=0.0, master_weights=True)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.state[weight]["master_weight"].copy_(1 + 1e-4 * torch.tensor([[3.0, 1.0, 2.0, 0.0]]))
        optimizer.prune(0.5, structure="2:4")
        assert optimizer.masks[weight].tolist() == [[True, False, True, False]]

    def test_momentum_is_kept_where_it_is_asked_for(self):
        weight = nn.Parameter(normal(64, torch.float32).view(8, 8))
        optimizer = MaskedSGD([weight], lr=0.1, momentum=0.9, mask_momentum="keep")
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.prune(0.5, structure="2:4")
        assert optimizer.state[weight]["momentum_buffer"].all()

    def test_the_packed_mask_stays_where_it_was(self):
        weight = nn.Parameter(normal(64, torch.float32).view(8, 8))
        optimizer = MaskedSGD([weight], lr=0.1)
        optimizer.prune(0.3)
        version = optimizer._masks.version
        optimizer.prune(0.5, structure="2:4")
        assert optimizer._masks.version == version

    def test_a_sparsity_of_0_prunes_nothing_and_has_a_mask(self):
        weight = nn.Parameter(normal(64, torch.float32).view(8, 8))
        optimizer = MaskedSGD([weight], lr=0.1)
        optimizer.prune(0.0, structure="2:4")
        assert optimizer.masks[weight].all()

    def test_nothing_waits_for_the_device(self):
        weight = nn.Parameter(normal(64, torch.float32).view(8, 8))
        with Watch():
            structured_mask(weight, 32, parse_structure("2:4"))

    @pytest.mark.parametrize(
        ("shape", "sparsity", "structure", "text"),
        [
            (
                (4, 6),
                0.5,
                "2:4",
                r"structure: .* of params\[1\] .*, but its input dimension of 6 is not a multiple of 4",
            ),
            ((64,), 0.5, "2:4", r"structure: .* of params\[1\] .*, but its shape \(64,\) has no input dimension"),
            (
                (4, 8),
                0.25,
                "2:4",
                r"sparsity of params\[0\] .*: expected 0 or 0\.5 with structure 2:4, which prunes 8 of 16",
            ),
            ((4, 8), 0.5, "4:2", "structure: expected unstructured, or N:M with 0 < N < M such as 2:4, got '4:2'"),
            ((4, 8), 0.5, "0:4", "structure: expected unstructured, or N:M"),
            ((4, 8), 0.5, "2/4", "structure: expected unstructured, or N:M"),
            ((4, 8), 0.5, 24, "structure: expected unstructured, or N:M .* got 24"),
            ((4, 8), 1.5, "2:4", r"sparsity: expected a number in \[0, 1\), got 1.5"),
        ],
    )
    def test_bad_input_is_named_and_nothing_has_changed(self, shape, sparsity, structure, text):
        good, bad = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(shape))
        optimizer = MaskedSGD([good, bad], lr=0.1)
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match=text):
            optimizer.prune(sparsity, [good, bad], structure=structure)
        assert optimizer.state_dict() == before
        assert good.all()


class TestMasks:
    def test_magnitude_masks_name_the_tensor(self):
        with pytest.raises(ValueError, match=r"of tensors\[1\], but its input dimension of 3"):
            masks.magnitude_masks([torch.ones(2, 4), torch.ones(2, 3)], 0.5, structure="2:4")
        with pytest.raises(ValueError, match="distribution: expected uniform with structure 2:4, got 'global'"):
            masks.magnitude_masks([torch.ones(2, 4)], 0.5, "global", structure="2:4")

    def test_random_masks_are_exact_in_every_group_and_follow_the_generator(self):
        tensor = torch.ones(64, 8, 3, 3).to(memory_format=torch.channels_last)
        first, again, other = (
            masks.random_masks([tensor], 0.75, generator(seed), structure="1:4")[0] for seed in (0, 0, 1)
        )
        assert (first.movedim(1, -1).unflatten(-1, (-1, 4)).sum(-1) == 1).all()
        assert first.stride() == tensor.stride()
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_every_place_of_a_group_is_as_likely(self):
        [mask] = masks.random_masks([torch.ones(1000, 40)], 0.5, generator(0), structure="2:4")
        share = mask.view(-1, 4).float().mean(0)
        assert ((share - 0.5).abs() < 0.02).all()  # four standard deviations

    def test_random_masks_of_a_higher_sparsity_contain_those_of_a_lower(self):
        low, high = (masks.random_masks([torch.ones(9, 7), torch.ones(5, 5)], s, generator(0)) for s in (0.3, 0.6))
        assert all((a | ~b).all() for a, b in zip(low, high, strict=True))


class TestPlan:
    def test_the_plan_says_which_layers_qualify(self):
        model = nn.Sequential(
            nn.Conv2d(8, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.Linear(16, 8)
        )
        plan = masks.plan(model, 0.5, structure="2:4")
        assert {row.name: (row.n_pruned, row.reason) for row in plan.rows if "weight" in row.name} == {
            "0.weight": (0, "first convolution"),
            "1.weight": (216, ""),
            "2.weight": (0, "input dimension of 6 is not a multiple of 4"),
            "3.weight": (0, "transposed convolution has its inputs in another dimension"),
            "4.weight": (64, ""),
        }
        optimizer = MaskedSGD(model.parameters(), lr=0.1)
        optimizer.prune(plan.sparsities(), structure="2:4")
        assert [int((~mask).sum()) for mask in optimizer.masks.values()] == [216, 64]

    def test_a_dict_names_layers_that_qualify(self):
        model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 6), nn.Linear(6, 4))
        plan = masks.plan(model, distribution={"0.weight": 0.5, "1.weight": 0.0}, structure="2:4")
        assert [row.n_pruned for row in plan.prunable] == [64, 0]
        with pytest.raises(ValueError, match=r"'2\.weight' names 2.weight, but its input dimension of 6"):
            masks.plan(model, distribution={"2.weight": 0.5}, structure="2:4")
        with pytest.raises(ValueError, match=r"distribution\['0.weight'\]: expected 0 or 0\.5 with structure 2:4"):
            masks.plan(model, distribution={"0.weight": 0.25}, structure="2:4")

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"sparsity": 0.3}, r"sparsity: expected 0 or 0\.5 with structure 2:4, which prunes 64 of 128"),
            ({"distribution": "erk"}, "distribution: expected uniform or a dict with structure 2:4, got 'erk'"),
            ({"distribution": "global"}, "distribution: expected uniform or a dict with structure 2:4, got 'global'"),
            ({"structure": "half"}, "structure: expected unstructured, or N:M .* got 'half'"),
        ],
    )
    def test_bad_options(self, options, text):
        with pytest.raises(ValueError, match=text):
            masks.plan(nn.Linear(16, 8), **{"sparsity": 0.5, "structure": "2:4", **options})
